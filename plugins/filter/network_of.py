# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter network_of: in which of some networks an address is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.drover.kvm.plugins.filter.in_network import in_network

DOCUMENTATION = r"""
name: network_of
short_description: In which of some networks an address is
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Compares an address with networks as P(drover.kvm.in_network#filter) does.
options:
  _input:
    description: The address, or what P(drover.kvm.portal#filter) returned.
    type: raw
    required: true
  networks:
    description: The networks, such as V([10.231.5.0/24, 10.231.7.0/24]).
    type: list
    elements: str
    required: true
positional: [networks]
"""

EXAMPLES = r"""
- name: Check that a portal is in a storage network
  ansible.builtin.assert:
    that: "'10.231.7.10:3260' | drover.kvm.portal | drover.kvm.network_of(storage_networks)"

- name: Say in which
  ansible.builtin.debug:
    msg: "{{ '10.231.7.10' | drover.kvm.network_of(['10.231.5.0/24', '10.231.7.0/24']) }}"

- name: Another address is in none
  ansible.builtin.debug:
    msg: "{{ '10.9.9.9' | drover.kvm.network_of(storage_networks) | default('none', true) }}"
"""

RETURN = r"""
_value:
  description: The first of the networks that holds the address; an empty string when none does.
  type: str
  sample: 10.231.7.0/24
"""


def network_of(value: Any, networks: Sequence[str]) -> str:
    """The first network that holds the address, else an empty string. Raises ValueError when one of them is none."""
    return next((str(network) for network in networks if in_network(value, network)), "")


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file."""
        return {"network_of": network_of}
