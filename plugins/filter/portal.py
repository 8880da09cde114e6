# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter portal: the parts of an iSCSI portal."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

DOCUMENTATION = r"""
name: portal
short_description: The address and port of an iSCSI portal
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Takes the portal of an iSCSI target apart, and refuses what is none. Names are refused, as a portal that depends on
    DNS is gone with it.
options:
  _input:
    description: The portal, such as V(10.231.5.10:3260), V(10.231.5.10) or V([fd00:5::10]:3260).
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Say where the SAN is
  ansible.builtin.debug:
    msg: "{{ ('10.231.5.10:3260' | drover.kvm.portal).address }}"

- name: The port may be left out
  ansible.builtin.debug:
    msg: "{{ ('10.231.5.10' | drover.kvm.portal).port }}"

- name: An IPv6 portal has brackets
  ansible.builtin.debug:
    msg: "{{ '[fd00:5::10]:3260' | drover.kvm.portal }}"

- name: In the form in which open-iscsi and tgtd show it
  ansible.builtin.debug:
    msg: "{{ ('[FD00:5:0::10]' | drover.kvm.portal).text }}"
"""

RETURN = r"""
_value:
  description: >-
    A dictionary of C(address) (without brackets), C(port), 3260 when it was left out, and C(text), which is both.
  type: dict
  sample: {address: 10.231.5.10, port: 3260, text: "10.231.5.10:3260"}
"""

PORTAL = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:]+)\]|(?P<four>[0-9.]+))(?::(?P<port>\d{1,5}))?", re.ASCII)


def portal(value: Any) -> dict[str, Any]:
    """Address and port, and both as text. Raises ValueError."""
    match = PORTAL.fullmatch(value) if isinstance(value, str) else None
    try:
        if match is None:
            raise ValueError("write an address and a port")
        address = str(ipaddress.ip_address(match["six"] or match["four"]))
        port = int(match["port"] or 3260)
        if not 0 < port < 65536:
            raise ValueError("a port is a number from 1 to 65535")
    except ValueError as error:
        raise ValueError(
            f"{value!r} is not an iSCSI portal such as 10.231.5.10:3260 or [fd00:5::10]:3260: {error}"
        ) from None
    return {"address": address, "port": port, "text": f"[{address}]:{port}" if ":" in address else f"{address}:{port}"}


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file."""
        return {"portal": portal}
