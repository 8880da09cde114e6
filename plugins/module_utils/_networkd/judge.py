# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused because the machine is as it is: what would be cut off, and what belongs to others. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._errors import NotFound, Refused
from .._lifelines import refuse
from . import files
from .devices import Devices
from .live import Host, is_fixed, kind_of, lifelines

State = Mapping[str, Mapping[str, Any]]


def check(host: Host, devices: Devices, prefix: str) -> None:
    """Refuse what is missing or belongs to others. Raises NotFound or Refused."""
    nics = [name for name, device in devices.items() if device["kind"] == "nic"]
    missing = [name for name in nics if name not in host.links]
    if missing:
        there = sorted(name for name, link in host.links.items() if kind_of(link) == "nic" and name != "lo")
        raise NotFound(f"this machine has no interface {', '.join(missing)} (it has: {', '.join(there) or 'none'})")
    ours = {*files.named(host.files, prefix), *files.named(host.files, prefix, "netdev")}
    for name, device in sorted(devices.items()):
        link = host.links.get(name)
        if link is None:
            continue
        if kind_of(link) != device["kind"] or (device["kind"] != "nic" and name not in ours):
            raise Refused(
                f"{name} is there already, a {kind_of(link)} that this module has not made; take it away where it is "
                "configured, or choose another name",
                device=name,
            )
        master = link.get("master")
        if master and master not in devices and master not in ours:
            raise Refused(
                f"{name} belongs to {master}, which is not declared here; take it out there first", device=name
            )
        _check_file(host, name, prefix)


def _check_file(host: Host, name: str, prefix: str) -> None:
    """networkd takes the first file that fits, by name."""
    taken = str(host.managed.get(name, {}).get("NetworkFile") or "")
    first = taken.rpartition("/")[2]
    if first and not first.startswith(prefix) and first < f"{prefix}{name}.network":
        raise Refused(
            f"{name} is configured by {taken}, which is sorted before the files of this module; remove or rename it",
            device=name,
            file=taken,
        )


def shadowed(host: Host, devices: Devices, prefix: str) -> list[str]:
    """The links for which networkd took another file than ours, one sentence for each."""
    found = []
    for name in sorted(devices):
        taken = str(host.managed.get(name, {}).get("NetworkFile") or "none")
        if taken.rpartition("/")[2] != f"{prefix}{name}.network":
            found.append(f"{name} has the file {taken}")
    return found


def check_leaving(host: Host, devices: Devices, prefix: str) -> None:
    """Refuse to remove a bridge that still carries what is not ours, VMs above all. Raises Refused."""
    ours = files.named(host.files, prefix)
    for name in sorted(files.named(host.files, prefix, "netdev").keys() - devices.keys()):
        ports = sorted(port for port, link in host.links.items() if link.get("master") == name and port not in ours)
        if ports and name in host.links:
            raise Refused(
                f"{kind_of(host.links[name])} {name} carries {', '.join(ports)}, which would be cut off; move or stop "
                "the virtual machines first",
                ports=ports,
            )


def check_lifeline(host: Host, before: State, after: State, came_in: str | None, prefix: str) -> None:
    """Refuse to cut the branch on which Ansible sits. Raises Refused."""
    ours = files.named(host.files, prefix)
    cut = {}
    for name, reason in lifelines(host, came_in).items():
        old, new = before["links"].get(name), after["links"].get(name)
        if old and _cut(old, new, name in ours, came_in, host.addresses.get(name, [])):
            cut[name] = reason
    refuse(cut)


def _cut(
    old: dict[str, Any], new: dict[str, Any] | None, ours: bool, came_in: str | None, addresses: list[str]
) -> bool:
    """Whether the change of a link interrupts what it carries."""
    if new is None:
        return bool(old["kind"] != "nic" or old["master"] or old["addresses"])
    if old["master"] != new["master"] or is_fixed(old, new):
        return True
    if not ours:
        # It is taken over: all that it has from others goes.
        return bool({item for item in addresses if not item.startswith("fe80:")} - set(new["addresses"]))
    return any(item.split("/")[0] == came_in for item in set(old["addresses"]) - set(new["addresses"]))
