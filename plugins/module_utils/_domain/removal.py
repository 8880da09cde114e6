# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM goes: its definition first, then what was made for it; what stays is told."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from .._disks.kind import Store, Volume
from .._errors import Refused
from .._resource import Step
from .._xml import Property, parse
from . import disks, seeding
from .admission import HERE, Admission
from .draft import Draft

Volumes = list[tuple[Store, Volume]]


def volumes(draft: Draft, admission: Admission) -> Volumes:
    """What is to be deleted with the VM. Raises Refused when somebody else has it, or may have it."""
    if draft.params["state"] != "absent" or not draft.params["remove_disks"]:
        return []
    surveys = {HERE: admission.site.surveyed, **admission.answers("deprived of its disks")}
    others = {node: [one for one in found if _is_other(one, node, draft)] for node, found in surveys.items()}
    return draft.removable(others)


def _is_other(one: Mapping[str, Any], node: str, draft: Draft) -> bool:
    """Whether it is not what goes.

    The VM itself may be on a peer: where it runs there, or this node does not even have it, it has its disks there.
    """
    if one["name"] != draft.params["name"]:
        return True
    return node != HERE and (one["active"] or draft.domain is None)


def steps(draft: Draft, admission: Admission) -> list[Step]:
    """Undefine it, then delete its volumes and its seed."""
    name, uuid = admission.name, draft.uuid
    _check_snapshots(draft, name)
    defined = draft.domain is not None and draft.domain.persistent
    first = [Step(f"undefine {name}", draft.undefine)] if defined else []
    found = volumes(draft, admission)
    first += [Step(f"delete {one.name}", partial(store.remove, one.identity, uuid)) for store, one in found]
    return first + seeding.removal(name, uuid)


def _check_snapshots(draft: Draft, name: str) -> None:
    """Raise Refused while it has snapshots: the definition goes with all that is known of them, and of their files."""
    there = draft.domain is not None and draft.domain.has_snapshots
    held = draft.site.node.snapshots(name) if there else []
    names = [str(Property("name").get(parse(xml))) for xml, _current in held]
    if names:
        raise Refused(
            f"{name} has snapshots ({', '.join(sorted(names))}), which would be lost, or left behind as files that "
            "nobody knows; remove them first (drover.kvm.snapshot)",
            snapshots=sorted(names),
        )


def kept(draft: Draft, admission: Admission) -> list[str]:
    """What the VM's disks lie on and what stays: nobody asked for it, it is not ours, or is a medium."""
    if draft.params["state"] != "absent" or draft.facts is None:
        return []
    gone = {volume.identity for _store, volume in volumes(draft, admission)} | {f"file:{path}" for path in draft.left()}
    stays = []
    for disk in draft.facts["disks"]:
        store = disks.KINDS[disk["type"]].store if disk["type"] in disks.KINDS else None
        identity = store.canonical(disk["identity"]) if store and disk["identity"] else disk["identity"]
        if identity and identity not in gone and disk["identity"] not in gone:
            stays.append(disk["identity"].partition(":")[2])
    return stays
