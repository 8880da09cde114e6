# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be changed in a running VM at once; the rest waits for its next start. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from .._xml import devices, text_of
from . import metadata, nics


def vlans(live: Element, sheet: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Words and device XML for each NIC that runs in another VLAN than its sheet says; writes them into `live`.

    libvirt takes a change of a NIC only with its whole live XML.
    """
    changes = []
    wanted = {nic["mac"]: nic for nic in sheet["nics"]}
    for nic in filter(nics.known, devices(live, "interface")):
        before = nics.read(nic)
        after = wanted.get(nics.nic_mac(nic))
        if after and after["vlan"] and before["bridge"] == after["bridge"] and before["vlan"] != after["vlan"]:
            nics.VLAN.put(nic, after["vlan"])
            words = f"move nic {after['mac']} at once from VLAN {before['vlan'] or 'none'} to {after['vlan']}"
            changes.append((words, text_of(nic)))
    return changes


def tags(live: Element, sheet: Mapping[str, Any]) -> str | None:
    """The new record when the running VM's tags differ from its sheet's, as libvirt's metadata call wants it."""
    if metadata.read(live)["tags"] == sheet["tags"]:
        return None
    metadata.edit(live, {"tags": sheet["tags"]})
    return metadata.record_xml(live)
