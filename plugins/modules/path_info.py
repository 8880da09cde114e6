#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell whether full packets arrive at other machines."""

from __future__ import annotations

DOCUMENTATION = r"""
module: path_info
short_description: Tell whether packets of full size arrive at other machines
version_added: "0.1.0"
description:
  - Sends pings that may not be fragmented, as large as the interface allows that the route takes, and tells for each
    address whether they arrive. Where they do not, it tries the usual sizes and returns the largest that does.
  - It finds what nobody sees before a migration or the storage hangs. Small packets pass, so ping and ssh work, but one
    cable or switch port on the way has a smaller MTU and the large packets get lost.
  - All addresses are asked at once; a path that is in order takes half a second. It changes nothing and does not fail
    when packets get lost. Look at RV(paths[].ok), as playbook C(drover.kvm.network_report) does.
options:
  to:
    description: The IPv4 or IPv6 addresses of other machines.
    type: list
    elements: str
    required: true
  mtu:
    description:
      - Size of the packets in bytes, with the headers of IP, 68 to 65535.
      - Without it the MTU of the route, or of the interface that it takes.
    type: int
  timeout:
    description: How long one answer may take, in seconds, 1 to 60.
    type: int
    default: 2
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.info
requirements:
  - programs C(ip) (package C(iproute2)) and C(ping) of iputils (C(iputils-ping), C(iputils))
seealso:
  - name: ping(8)
    description: Option C(-M do) of iputils.
    link: https://man7.org/linux/man-pages/man8/ping.8.html
  - name: RFC 1191
    description: Path MTU discovery.
    link: https://www.rfc-editor.org/rfc/rfc1191
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: See whether the migration network carries jumbo frames
  drover.kvm.path_info:
    to: [10.0.6.12, 10.0.6.13]
  register: migration

- name: Refuse to go on where it does not
  ansible.builtin.assert:
    that: migration.paths | rejectattr('ok') | length == 0
    fail_msg: "{{ migration.paths | rejectattr('ok') | map(attribute='message') | join('; ') }}"

- name: Look whether all of the storage network carries the 9000 bytes that its interfaces are set to
  drover.kvm.path_info:
    to: ["{{ san_address }}"]
    mtu: 9000

- name: Ask over a slow line
  drover.kvm.path_info:
    to: ["2001:db8:6::12"]
    timeout: 5
"""

RETURN = r"""
paths:
  description: One entry for each address, in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    to:
      description: The address.
      type: str
      sample: 10.0.6.12
    ok:
      description: Whether packets of RV(paths[].mtu) bytes arrive.
      type: bool
      sample: false
    interface:
      description: The interface that the route takes; null without a route.
      type: str
      sample: migration0
    source:
      description: This machine's own address on the way.
      type: str
      sample: 10.0.6.11
    mtu:
      description: The size that was tried, in bytes.
      type: int
      sample: 9000
    largest:
      description: The largest of the usual sizes that arrives, in bytes; null when nothing does.
      type: int
      sample: 1500
    message:
      description: All of it in a sentence.
      type: str
      sample: >-
        10.0.6.12 by migration0: packets of 9000 bytes get lost, of 1500 arrive: a link on the way has a smaller MTU
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _paths
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between
from ansible_collections.drover.kvm.plugins.module_utils._resource import run_info

FIELDS = (
    Field("to", type="list", elements="str", required=True, check=lambda to: [_paths.check_address(one) for one in to]),
    Field("mtu", type="int", check=between(68, 65535)),
    Field("timeout", type="int", default=2, check=between(1, 60)),
)


def connect(_params: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Nothing is opened."""
    return nullcontext()


def read_paths(params: dict[str, Any], _client: None) -> dict[str, Any]:
    """All of it."""
    return {"paths": _paths.paths(params["to"], params["mtu"], params["timeout"])}


def main() -> None:
    """Run the module."""
    run_info(read_paths, FIELDS, connect)


if __name__ == "__main__":
    main()
