# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who needs a template: VMs of this node, running or off, and the files that are based on it."""

from __future__ import annotations

import os
from contextlib import suppress

from .._disks import template
from .._errors import NotFound, Refused
from .._libvirt import connect
from .._xml import devices, parse


def check_unused(path: str) -> None:
    """Raise Refused when a VM or a file needs the template, naming them; Unreachable when libvirt can't be asked.

    A machine without libvirt's library has no VMs.
    """
    files = template.clones(path)
    vms: list[str] = []
    with suppress(NotFound), connect() as node:
        vms = sorted(
            domain.name
            for domain in node.domains().values()
            if any(_needs(xml, path) for xml in (domain.xml, domain.live_xml) if xml)
        )
    if files or vms:
        named = [f"VM {name}" for name in vms] + files
        raise Refused(
            f"{path} is the template of {', '.join(named)}; remove these, or flatten them (clone: full), first",
            vms=vms,
            clones=files,
        )


def _needs(xml: str, path: str) -> bool:
    """Whether a disk of a definition is the file, or is based on it."""
    real = os.path.realpath(path)
    sources = [source.get("file") for disk in devices(parse(xml), "disk") for source in disk.iter("source")]
    names = [name for name in sources if name]
    return any(real == os.path.realpath(name) or real in template.chain(name) for name in names)
