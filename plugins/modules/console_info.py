#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell whether virtual machines answer on their serial consoles."""

from __future__ import annotations

DOCUMENTATION = r"""
module: console_info
short_description: Tell whether virtual machines answer on their serial consoles
version_added: "0.1.0"
description:
  - Opens the serial consoles of running machines of a node, types Enter, and tells whether a login prompt comes. The
    console is the way in when the network of a machine is dead, so look before that day whether it works;
    playbook C(drover.kvm.console_check) does so for all machines.
  - All consoles are opened at once. It logs in nowhere, changes nothing, and does not fail when one is silent. Look at
    RV(consoles[].ok).
  - A console at which somebody works is left alone, and RV(consoles[].message) says so.
  - A person opens a console with C(virsh console NAME) on the node, and leaves it with Ctrl and C(]).
options:
  names:
    description:
      - Names of the machines.
      - The default is all that run on the node.
    type: list
    elements: str
  expect:
    description: What the console must say, a regular expression of Python, matched line by line.
    type: str
    default: "login:"
  timeout:
    description: How long to wait for it, in seconds, 1 to 600. Enter is typed again every five seconds.
    type: int
    default: 15
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.info
  - drover.kvm.libvirt
seealso:
  - module: drover.kvm.vm
    description: Option C(console_log) keeps all that a console says.
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Can one log in on the consoles of all machines of this node
  drover.kvm.console_info:
  register: found

- name: Name those where one can't
  ansible.builtin.debug:
    msg: "{{ found.consoles | rejectattr('ok') | map(attribute='message') | list }}"

- name: Wait until a machine has booted, whatever its network does
  drover.kvm.console_info:
    names: [web1]
    timeout: 300
  register: web1
  failed_when: web1.consoles | rejectattr('ok') | length > 0

- name: A machine whose console shows a menu
  drover.kvm.console_info:
    names: [fw1]
    expect: "Enter an option"
"""

RETURN = r"""
consoles:
  description: One entry for each machine, by its name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The machine.
      type: str
      sample: web1
    ok:
      description: Whether its console said what was expected.
      type: bool
      sample: true
    text:
      description: The last lines that it said.
      type: str
      sample: "Debian GNU/Linux 13 web1 ttyS0\n\nweb1 login: "
    message:
      description: All of it in a sentence.
      type: str
      sample: web1 answers on its console
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, check_name
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, Node, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import run_info

SHOWN = 2000
ENTER = b"\r"
AT_ONCE = 50
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]|[\x00-\x08\x0b-\x1f]")


def _check_expect(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


FIELDS = (
    Field("names", type="list", elements="str", check=lambda names: [check_name(name) for name in names]),
    Field("expect", default="login:", check=_check_expect),
    Field("timeout", type="int", default=15, check=between(1, 600)),
    URI,
)


def opened(params: Mapping[str, Any]) -> AbstractContextManager[Node]:
    """A connection that may open consoles; libvirt lets no reader do that."""
    return connect(params["uri"])


def plain(said: bytes) -> str:
    """What a terminal would show, without colours and the like."""
    return CODES.sub("", said.decode(errors="replace").replace("\r\n", "\n"))


def look(node: Node, params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One console."""
    expected = re.compile(params["expect"], re.MULTILINE)
    try:
        said = node.console(name, ENTER, lambda said: bool(expected.search(plain(said))), params["timeout"])
    except Failed as error:
        return {"name": name, "ok": False, "text": "", "message": error.message}
    text, found = plain(said), expected.search(plain(said)) is not None
    silent = f"{name} does not answer on its console within {params['timeout']} s"
    message = f"{name} answers on its console" if found else silent + ("" if text.strip() else ", and says nothing")
    return {"name": name, "ok": found, "text": text[-SHOWN:], "message": message}


def read_consoles(params: dict[str, Any], node: Node) -> dict[str, Any]:
    """All of them."""
    running = {domain.name for domain in node.domains(brief=True).values() if domain.state == "running"}
    names = sorted(running if params["names"] is None else set(params["names"]))
    if off := [name for name in names if name not in running]:
        raise Invalid(f"not running on {node.name}: {', '.join(off)}", option="names")
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        return {"consoles": list(pool.map(partial(look, node, params), names))}


def main() -> None:
    """Run the module."""
    run_info(read_consoles, FIELDS, opened)


if __name__ == "__main__":
    main()
