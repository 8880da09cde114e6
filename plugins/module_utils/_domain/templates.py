# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who needs a template: VMs of this node, running or off, and the files that are based on it."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

from .._disks import template
from .._errors import DroverError, NotFound, Refused
from .._libvirt import Node, connect
from .._node import shared_mounts
from .._peers import ask_peers
from .._xml import devices, parse
from .facts import below


def check_unused(path: str) -> None:
    """Raise Refused when a VM or a file needs the template, naming them; Unreachable when libvirt can't be asked.

    A machine without libvirt's library has no VMs. Of a template on shared storage the peers are asked as well: their
    clones may lie on disks of their own.
    """
    files = template.clones(path)
    vms: list[str] = []
    with suppress(NotFound), connect() as node:
        vms = _users(path, node)
    vms += _elsewhere(path)
    if files or vms:
        named = [f"VM {name}" for name in vms] + files
        raise Refused(
            f"{path} is the template of {', '.join(named)}; remove these, or flatten them (clone: full), first",
            vms=vms,
            clones=files,
        )


def _users(path: str, node: Node) -> list[str]:
    """The VMs of a node that need it."""
    return sorted(
        domain.name
        for domain in node.domains().values()
        if any(_needs(xml, path) for xml in (domain.xml, domain.live_xml) if xml)
    )


def _elsewhere(path: str) -> list[str]:
    """The VMs of other nodes that need a template which these have too. Raises Refused while one gives no answer."""
    if not below(os.path.realpath(path), shared_mounts()):
        return []
    told = ask_peers(partial(_users, path))
    if silent := sorted(name for name, answer in told.items() if isinstance(answer, DroverError)):
        raise Refused(
            f"{path} is on shared storage, and {', '.join(silent)} gave no answer: VMs there may be clones of it. Run "
            "this again when they answer, or take another path",
            unreachable=silent,
        )
    return [f"{vm} on {name}" for name, vms in told.items() for vm in vms]


def _needs(xml: str, path: str) -> bool:
    """Whether a disk of a definition is the file, or is based on it."""
    real = os.path.realpath(path)
    sources = [source.get("file") for disk in devices(parse(xml), "disk") for source in disk.iter("source")]
    names = [name for name in sources if name]
    return any(real == os.path.realpath(name) or real in template.chain(name) for name in names)
