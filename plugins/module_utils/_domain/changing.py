# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps by which a running VM gets at once what its definition says, and whether it may have the disks."""

from __future__ import annotations

from functools import partial

from .._errors import Failed
from .._resource import Step
from .._xml import parse
from . import attaching, metadata, scaling, seeding
from .admission import Admission
from .attaching import Change
from .declare import declare
from .draft import Draft
from .neighbours import claims_of

DETACH_SECONDS = 30.0
IN_PROGRESS = "in the process of unplug"
MEND = (
    "the guest has not let go of it: a system that starts, hangs or knows no hot-plug does not. Run this again later, "
    f"or {scaling.RESTART}"
)
LOCKED = "is locked"


def admit(admission: Admission, draft: Draft) -> None:
    """Ask whether the VM may have the disks that it gets at once, as before a start. Raises Refused."""
    targets = {change.key for change in draft.live.devices if (change.verb, change.kind) == ("attach", "disk")}
    if targets:
        admission.start(claims_of(draft.after), draft.uuid, partial(draft.check_stores, targets), act="given its disks")


def steps(admission: Admission, draft: Draft) -> list[Step]:
    """What changes at once after the definition; devices come late, as the guest may keep one."""
    found = [Step(change.words, partial(_change, draft, change)) for change in draft.live.changes]
    found += [_device(admission, draft, change) for change in draft.live.devices]
    return found + seeding.ejected(draft.params["cloud_init"], draft.params["name"], draft.uuid)


def ahead(draft: Draft) -> list[Step]:
    """What changes at once before the definition does."""
    return [Step(change.words, partial(_change, draft, change)) for change in draft.live.ahead]


def _change(draft: Draft, change: scaling.Change) -> None:
    node, name = draft.site.node, draft.params["name"]
    change.call(node, name)
    if change.ports:
        declare(node.domain(name))


def _device(admission: Admission, draft: Draft, change: Change) -> Step:
    node, name = admission.site.node, admission.name
    if change.verb == "attach":
        return Step(f"attach {change.words} at once", partial(_attach, admission, draft, change))
    if change.verb == "load":
        return Step(f"change the medium of {change.words} at once", partial(_load, draft, change))

    def detach() -> None:
        try:
            node.detach_device(name, change.xml, live=True, config=False)
        except Failed as error:
            # The guest was asked a moment ago, maybe by a run that was cut off.
            if IN_PROGRESS not in error.message:
                raise

    def gone() -> bool | str:
        domain = node.domain(name)
        now = domain.live_xml if domain else None
        return now is None or not attaching.has(parse(now), change) or MEND

    return Step(f"detach {change.words} at once", detach, gone, DETACH_SECONDS)


def _attach(admission: Admission, draft: Draft, change: Change) -> None:
    """At the address that the definition has for it now. What the peers said of a disk may be old."""
    node, name = admission.site.node, admission.name
    if change.kind == "disk":
        admit(admission, draft)
    domain = node.domain(name)
    if domain is None or domain.live_xml is None:
        raise Failed(f"{name} does not run any more")
    xml = attaching.placed(parse(domain.live_xml), parse(domain.xml), change)
    node.attach_device(name, xml, live=True, config=False)
    if change.kind == "interface" and metadata.NICS.get(draft.after):
        # A new port knows nothing yet of what the VM's record says of it.
        declare(node.domain(name))


def _load(draft: Draft, change: Change) -> None:
    node, name = draft.site.node, draft.params["name"]
    try:
        node.update_device(name, change.xml, live=True, config=False)
    except Failed as error:
        if LOCKED not in error.message:
            raise
        raise Failed(
            f"the guest of {name} has locked the tray of {change.key}: let it unmount and eject the medium, then run "
            "this again",
            **error.details,
        ) from None
