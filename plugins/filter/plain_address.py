# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter plain_address: one form for each way to write an address."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

DOCUMENTATION = r"""
name: plain_address
short_description: One form for each way to write an address
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - An IPv6 address can be written in several ways, in capitals and with or without its zeros. This is the way in which
    systems show it, so that two texts can be compared.
options:
  _input:
    description: The address, also with the length of its prefix. What is none is returned as it is.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Say an address as the system does
  ansible.builtin.debug:
    msg: "{{ 'FD00:5:0:0::11' | drover.kvm.plain_address }}"

- name: Do so with its prefix, fd00:5::11/64
  ansible.builtin.debug:
    msg: "{{ 'FD00:5::0011/64' | drover.kvm.plain_address }}"

- name: Name the addresses that a host lacks
  ansible.builtin.debug:
    msg: "{{ declared | map('drover.kvm.plain_address') | difference(present | map('drover.kvm.plain_address')) }}"
"""

RETURN = r"""
_value:
  description: The address, with the length of its prefix where it had one.
  type: str
  sample: fd00:5::11/64
"""


def plain_address(value: Any) -> str:
    """One form for each way to write an address, with its prefix if it has one; anything else as it is."""
    text = str(value)
    try:
        return str(ipaddress.ip_interface(text) if "/" in text else ipaddress.ip_address(text))
    except ValueError:
        return text


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file."""
        return {"plain_address": plain_address}
