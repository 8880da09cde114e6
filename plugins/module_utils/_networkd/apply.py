# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the machine from the files that it has to others, touching nothing that stays. No Ansible here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from .._networkctl import Networkd

Files = Mapping[str, str]


def apply(client: Networkd, files: Files, remake: Collection[str] = (), again: Iterable[str] = ()) -> None:
    """Write, remove and reload. `remake` are devices to make anew, `again` links to set up though their file stays.

    In this order an interrupted run leaves what the next one needs to go on: a file goes after its device.
    """
    client.begin()
    now = client.files()
    gone = sorted(now.keys() - files.keys())
    for name in sorted(files):
        if now.get(name) != files[name]:
            client.write(name, files[name])
    for link in sorted({link_of(name) for name in gone if name.endswith(".netdev")} | set(remake)):
        client.delete(link)
    for name in sorted(now):
        master = master_of(now[name])
        if name.endswith(".network") and master and not master_of(files.get(name, "")):
            client.release(link_of(name), master)
    for name in gone:
        client.remove(name)
    client.reload()
    client.reconfigure(again)


def link_of(name: str) -> str:
    """The interface of one of our files."""
    return name.partition("drover-")[2].rpartition(".")[0]


def master_of(text: str) -> str | None:
    """The bond or bridge into which a file puts its interface."""
    found = re.search(r"^(?:Bond|Bridge)=(.*)$", text, re.MULTILINE)
    return found[1] if found else None


def parents(files: Files) -> dict[str, str]:
    """VLAN -> the interface on which it is."""
    found = {}
    for name, text in files.items():
        network = text.partition("[Network]\n")[2].partition("\n[")[0]
        found.update(dict.fromkeys(re.findall(r"^VLAN=(.*)$", network, re.MULTILINE), link_of(name)))
    return found


def remade(old: Files, new: Files) -> list[str]:
    """The bonds and VLANs that differ, and so can't be what they shall be without being made anew; bridges can."""
    differ = [
        link_of(n)
        for n in old.keys() & new.keys()
        if n.endswith(".netdev") and old[n] != new[n] and "Kind=bridge" not in new[n]
    ]
    there, then = parents(old), parents(new)
    return sorted({*differ, *(vlan for vlan in there.keys() & then.keys() if there[vlan] != then[vlan])})
