#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage the secrets with which libvirt logs in to storage."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secret
short_description: Manage the secrets with which libvirt logs in to storage
version_added: "0.1.0"
description:
  - Gives libvirt on a node the password or key that QEMU needs to open a VM's disk, such as the CHAP password of an
    iSCSI target. A VM's disk names the secret by its O(usage).
  - The value goes to libvirt through its API. It is never on a command line, in a file of this module, in a diff or in
    a log. It is compared with the value that libvirt holds, so that a second run changes nothing and a value that was
    changed elsewhere is put right.
  - The UUID follows from O(type) and O(usage), so that it is the same on every node. A secret of this usage that is
    there already keeps its UUID.
  - See U(https://libvirt.org/formatsecret.html).
options:
  usage:
    description: Name by which disks refer to the secret.
    type: str
    required: true
    aliases: [name]
  type:
    description: Which kind of storage it opens.
    type: str
    choices: [iscsi, ceph]
    default: iscsi
  value:
    description:
      - The secret itself. With O(type=iscsi) the CHAP password as it is; with O(type=ceph) the key in Base64, as Ceph
        prints it.
      - Needed for a new secret. Without it, the value that is there stays.
    type: str
  description:
    description: A text for people. Without it, the text that is there stays.
    type: str
  state:
    description:
      - V(absent) removes the secret and its value. VMs that run go on; those that need it will not start again.
    type: str
    choices: [present, absent]
    default: present
notes:
  - A secret that was defined as private by other means can't be read, so its value can't be compared. The task fails
    when O(value) is given for such a one; remove it first.
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
  - drover.kvm.libvirt
seealso:
  - module: drover.kvm.vm
  - module: drover.kvm.iscsi_volume
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Give the hypervisors what opens the VMs' disks
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: CHAP password of the SAN
      drover.kvm.secret:
        usage: san1
        value: "{{ vault_san1_chap_password }}"
        description: CHAP of san1

    - name: Key of the Ceph user libvirt
      drover.kvm.secret:
        usage: client.libvirt
        type: ceph
        value: "{{ vault_ceph_libvirt_key }}"

    - name: Forget the secret of a SAN that was switched off
      drover.kvm.secret:
        usage: old-san
        state: absent
"""

RETURN = r"""
secret:
  description: The secret without its value; null when it is absent.
  returned: always
  type: dict
  contains:
    usage:
      description: Its usage name.
      type: str
      sample: san1
    type:
      description: What it opens.
      type: str
      sample: iscsi
    uuid:
      description: Its UUID.
      type: str
      sample: 0f3b0e3c-7a77-5d55-8f56-5f9f1f4a2c10
    description:
      description: Its description.
      type: str
      sample: CHAP of san1
    has_value:
      description: Whether it has a value; null for a private secret, of which nobody can tell.
      type: bool
      sample: true
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["define secret san1", "set its value"]
"""

import base64
import binascii
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name
from ansible_collections.drover.kvm.plugins.module_utils._identity import NAMESPACE
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, Node, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("usage", required=True, aliases=("name",), check=check_name),
    Field("type", choices=("iscsi", "ceph"), default="iscsi"),
    Field("value", no_log=True),
    Field("description"),
    Field("state", choices=("present", "absent"), default="present"),
    URI,
)
USAGE_ELEMENTS = {"iscsi": "target", "ceph": "name"}


class SecretResource(Resource):
    """One secret. Its value is kept apart from its state, so that no result can show it."""

    key = "usage"

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Node]:
        """libvirt on this node."""
        return connect(params["uri"])

    def read(self) -> State:
        """What libvirt holds of this usage."""
        kind, usage = self.params["type"], self.params["usage"]
        found = next((one for one in self.client.secrets() if (one.type, one.usage) == (kind, usage)), None)
        self.stored: bytes | None = None
        if found is None:
            return None
        if not found.private:
            self.stored = self.client.secret_value(found.uuid)
        has_value = None if found.private else self.stored is not None
        state = {"usage": usage, "type": kind, "uuid": found.uuid, "description": found.description}
        return {**state, "private": found.private, "ephemeral": found.ephemeral, "has_value": has_value}

    def wanted(self, before: State) -> State:
        """The secret with what was given."""
        if self.params["state"] == "absent":
            return None
        given = self._value()
        kind, usage, description = (self.params[name] for name in ("type", "usage", "description"))
        made = {"usage": usage, "type": kind, "uuid": str(uuid.uuid5(NAMESPACE, f"secret/{kind}/{usage}"))}
        made.update(description=None, private=False, has_value=False)
        after = {**made, **(before or {}), "ephemeral": False}
        if description is not None:
            after["description"] = description or None
        if given is None and not after["has_value"] and not after["private"]:
            raise Invalid(f"value is missing; secret {usage} has none yet", option="value")
        if given is not None and after["private"]:
            raise Refused(
                f"secret {usage} is private: its value can't be read and so not be compared. Remove it with "
                "state=absent and make it again"
            )
        return {**after, "has_value": None if after["private"] else True}

    def _value(self) -> bytes | None:
        text = self.params["value"]
        if text is None:
            return None
        if not text:
            raise Invalid("value is empty; use state=absent to remove the secret", option="value")
        if self.params["type"] == "iscsi":
            return str(text).encode()
        try:
            return base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise Invalid("value is not a Ceph key in Base64, as ceph auth get-key prints it", option="value") from None

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Define, then set the value; or remove."""
        usage = self.params["usage"]
        if wanted is None:
            return (
                [Step(f"remove secret {usage}", partial(self.client.undefine_secret, before["uuid"]))] if before else []
            )
        steps = []
        if before is None or {**before, "has_value": True} != {**wanted, "has_value": True}:
            verb = "change" if before else "define"
            steps.append(Step(f"{verb} secret {usage}", partial(self.client.define_secret, secret_xml(wanted))))
        given = self._value()
        if given is not None and given != self.stored:
            steps.append(Step("set its value", partial(self.client.set_secret_value, wanted["uuid"], given)))
        return steps

    def result(self, state: State) -> dict[str, Any]:
        """The secret without its value."""
        hidden = ("private", "ephemeral")
        return {"secret": None if state is None else {key: state[key] for key in state if key not in hidden}}


def secret_xml(state: Mapping[str, Any]) -> str:
    """The definition; a secret of this module is kept over a reboot and can be read back by root."""
    root = Element("secret", {"ephemeral": "no", "private": "yes" if state["private"] else "no"})
    SubElement(root, "uuid").text = state["uuid"]
    if state["description"]:
        SubElement(root, "description").text = state["description"]
    usage = SubElement(root, "usage", {"type": state["type"]})
    SubElement(usage, USAGE_ELEMENTS[state["type"]]).text = state["usage"]
    return tostring(root, encoding="unicode")


def main() -> None:
    """Run the module."""
    run_module(SecretResource, FIELDS)


if __name__ == "__main__":
    main()
