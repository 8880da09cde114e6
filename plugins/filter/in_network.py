# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter in_network: whether an address is in a network."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

DOCUMENTATION = r"""
name: in_network
short_description: Whether an address is in a network
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Compares an address with a network, with nothing but Python's standard library on the controller.
  - An address of the other family (IPv4, IPv6) is not in the network.
options:
  _input:
    description: The address, or what P(drover.kvm.portal#filter) returned.
    type: raw
    required: true
  network:
    description: The network, such as V(10.231.5.0/24).
    type: str
    required: true
positional: [network]
"""

EXAMPLES = r"""
- name: Check that the SAN is in the storage network
  ansible.builtin.assert:
    that: "'10.231.5.10' | drover.kvm.in_network('10.231.5.0/24')"

- name: Check a portal
  ansible.builtin.assert:
    that: "'10.231.5.10:3260' | drover.kvm.portal | drover.kvm.in_network('10.231.5.0/24')"

- name: Name the network that an address is in
  ansible.builtin.debug:
    msg: "{{ 'storage' if address | drover.kvm.in_network('10.231.5.0/24') else 'another' }}"
  vars:
    address: 10.231.5.11
"""

RETURN = r"""
_value:
  description: Whether the address is in the network.
  type: bool
"""


def in_network(value: Any, network: str) -> bool:
    """Whether the address lies in the network. Raises ValueError when one of them is none."""
    address = value["address"] if isinstance(value, Mapping) else value
    try:
        return ipaddress.ip_address(str(address)) in ipaddress.ip_network(str(network))
    except ValueError as error:
        raise ValueError(f"{address!r} in {network!r}: {error}") from None


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file."""
        return {"in_network": in_network}
