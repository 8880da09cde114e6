# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the machine from the files that it has to others, touching nothing that stays. No Ansible here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from .._networkctl import Networkd

Files = Mapping[str, str]
USUAL_MTU = 1500
BRIDGE = {
    "STP": "stp_state",
    "Priority": "priority",
    "MulticastSnooping": "multicast_snooping",
    "VLANFiltering": "vlan_filtering",
}


def apply(client: Networkd, files: Files, remake: Collection[str] = (), again: Collection[str] = ()) -> None:
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
    release(client, now, files)
    for name in gone:
        client.remove(name)
    client.reload()
    # Until now networkd may have plugged them in again.
    release(client, now, files)
    for name in sorted(files):
        if name.endswith(".netdev") and (now.get(name) != files[name] or link_of(name) in again):
            client.tune(link_of(name), tuning(files[name]))
        elif "\nMTUBytes=" in now.get(name, "") and "\nMTUBytes=" not in files[name]:
            # networkd leaves it as it was.
            client.set_mtu(link_of(name), USUAL_MTU)
    client.reconfigure(again)


def release(client: Networkd, old: Files, new: Files) -> None:
    """Take the links that shall be in no bond or bridge any more out of ours."""
    for name in sorted(old):
        master = master_of(old[name])
        if name.endswith(".network") and master and not master_of(new.get(name, "")):
            client.release(link_of(name), master)


def nudge(client: Networkd, files: Files, links: Collection[str]) -> None:
    """Set links up once more, make what is still missing, and plug in what networkd does not."""
    # A device that was deleted just before the first reload may have been taken for one that is there.
    client.reload()
    client.reconfigure(links)
    for name in sorted(files):
        master = master_of(files[name])
        if link_of(name) in links and name.endswith(".network") and master:
            client.plug(link_of(name), master)


def link_of(name: str) -> str:
    """The interface of one of our files."""
    return name.partition("drover-")[2].rpartition(".")[0]


def master_of(text: str) -> str | None:
    """The bond or bridge into which a file puts its interface."""
    found = re.search(r"^(?:Bond|Bridge)=(.*)$", text, re.MULTILINE)
    return found[1] if found else None


def tuning(text: str) -> dict[str, str]:
    """The settings of a bridge in the words of /sys/class/net/BRIDGE/bridge."""
    found = {there: re.search(rf"^{key}=(.*)$", text, re.MULTILINE) for key, there in BRIDGE.items()}
    return {key: {"yes": "1", "no": "0"}.get(match[1], match[1]) for key, match in found.items() if match}


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
