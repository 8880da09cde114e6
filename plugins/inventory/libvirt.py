# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hypervisors of a site and what runs on them, as an inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: libvirt
short_description: Hypervisors and their VMs as an inventory
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Asks all hypervisors at the same time, read-only, which VMs they hold, and makes a host of each VM.
  - Its configuration file is called C(drover.yml), or its name ends in C(.drover.yml).
  - A node that can't be reached or does not answer in time is reported by a warning and put into the group
    C(drover_unreachable); the others are there all the same. The whole takes no longer than O(timeout), or twice that
    when a VM seems to run on two nodes and they are asked again.
  - Makes the groups C(hypervisors), C(drover_vms), C(drover_running), C(drover_stopped) (C(drover_paused) and so on),
    C(drover_on_<node>), C(drover_tag_<tag>), C(drover_unreachable) and C(drover_duplicate_running).
  - Sets only variables whose names begin with C(drover_), and C(ansible_host) of hypervisors from this file. What a VM
    or its description says is data, it is never evaluated as a template, and it can't choose a connection.
  - O(compose), O(groups) and O(keyed_groups) work on the VMs, not on the hypervisors.
  - A VM whose name module M(drover.kvm.vm) would not accept, or that is called like a node, is left out with a warning.
  - See U(https://libvirt.org/uri.html) for the URIs.
requirements:
  - Python package C(libvirt) (C(python3-libvirt)) on the controller
extends_documentation_fragment: [constructed, inventory_cache]
options:
  plugin:
    description: Says that the file is for this plugin.
    type: str
    required: true
    choices: [drover.kvm.libvirt]
  hypervisors:
    description:
      - The nodes by their inventory names. Each is null, or has C(uri) (how libvirt is reached from the controller,
        C(qemu+ssh://root@NAME/system) when not said, with NAME = C(ansible_host) or the inventory name) and
        C(ansible_host).
    type: dict
    required: true
  timeout:
    description: How long a node may take to answer, in seconds.
    type: int
    default: 6
"""

EXAMPLES = r"""
- name: inventory/site.drover.yml, the smallest
  plugin: drover.kvm.libvirt
  hypervisors:
    hv1:
    hv2:

- name: Reached over ssh, by addresses; answers kept for five minutes
  plugin: drover.kvm.libvirt
  hypervisors:
    hv1: {ansible_host: 10.1.0.11, uri: "qemu+ssh://root@10.1.0.11/system"}
    hv2: {ansible_host: 10.1.0.12, uri: "qemu+ssh://root@10.1.0.12/system"}
  timeout: 5
  cache: true
  cache_plugin: ansible.builtin.jsonfile
  cache_connection: /var/cache/drover
  cache_timeout: 300

- name: Own groups and addresses from what is known of a VM
  plugin: drover.kvm.libvirt
  hypervisors:
    hv1:
    hv2:
  groups:
    big: drover_memory.current >= 64 * 1024 ** 3
  keyed_groups:
    - {key: drover_machine, prefix: machine}
  compose:
    ansible_host: inventory_hostname ~ '.vm.example.org'
"""

import re
from collections.abc import Iterable
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import domain_facts
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node, libvirt
from ansible_collections.drover.kvm.plugins.module_utils._peers import ask
from ansible_collections.drover.kvm.plugins.plugin_utils._sightings import Guest, duplicates, group_name, guests

try:
    from ansible.utils.unsafe_proxy import wrap_var
except ImportError:

    def wrap_var(value: Any) -> Any:
        """Newer versions of Ansible trust no value of an inventory plugin by themselves."""
        return value


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
ENTRY = {"uri", "ansible_host"}


def survey(node: Node) -> list[dict[str, Any]]:
    """What runs on one node; runs in a child process."""
    return [domain_facts(domain) for domain in node.domains(brief=True).values()]


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """The inventory plugin."""

    NAME = "drover.kvm.libvirt"

    def verify_file(self, path: str) -> bool:
        """Whether the file is ours by its name."""
        ours = path.endswith(("/drover.yml", "/drover.yaml", ".drover.yml", ".drover.yaml"))
        return bool(super().verify_file(path)) and ours

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Ask the nodes and fill the inventory. Raises AnsibleParserError for a configuration that is wrong."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        self.nodes = self._nodes()
        answers, silent = self._answers(path, cache)
        twice = duplicates(answers)
        if twice:
            # A VM that was just migrated was seen on both nodes, one after the other: look again.
            again = {node: uri for node, uri in self._uris().items() if any(node in where for where in twice.values())}
            fresh, mute = self._ask(again)
            answers, silent = {**answers, **fresh}, {**silent, **mute}
            twice = duplicates(answers)
        found, warnings = guests(answers, twice, self.nodes)
        self._add_nodes(silent)
        for guest in found:
            self._add_guest(guest)
        self._construct(guest.name for guest in found)
        for warning in [*silent.values(), *warnings]:
            self.display.warning(f"drover.kvm.libvirt: {warning}")

    def _nodes(self) -> dict[str, dict[str, str]]:
        if libvirt is None:
            raise AnsibleError("the Python library of libvirt is missing here; install the package python3-libvirt")
        nodes = {}
        for name, given in self.get_option("hypervisors").items():
            entry = {} if given is None else given
            if not NAME.fullmatch(str(name)):
                raise AnsibleParserError(f"hypervisors: {name!r} is not the name of a node")
            if not isinstance(entry, dict) or set(entry) - ENTRY or not all(isinstance(v, str) for v in entry.values()):
                raise AnsibleParserError(
                    f"hypervisors.{name}: write nothing, or texts for {' and '.join(sorted(ENTRY))}"
                )
            nodes[str(name)] = {str(key): str(value) for key, value in entry.items()}
        return nodes

    def _uris(self) -> dict[str, str]:
        default = "qemu+ssh://root@{}/system?no_tty=1"
        return {
            name: entry.get("uri") or default.format(entry.get("ansible_host") or name)
            for name, entry in self.nodes.items()
        }

    def _ask(self, uris: dict[str, str]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
        """What the nodes hold, and why the others gave no answer."""
        answers = ask(uris, survey, max(1, self.get_option("timeout")))
        good = {node: answer for node, answer in answers.items() if isinstance(answer, list)}
        return good, {node: str(answer) for node, answer in answers.items() if node not in good}

    def _answers(self, path: str, cache: bool) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
        """From the cache where it is in use. Only answers are kept there: a silent node is asked each time."""
        use = self.get_option("cache")
        uris = self._uris()
        keys = {node: f"{self.get_cache_key(path)}_{node}" for node in uris}
        self.load_cache_plugin()
        kept = {node: self._cache.get(key) for node, key in keys.items()} if use and cache else {}
        known = {node: answer for node, answer in kept.items() if answer is not None}
        fresh, silent = self._ask({node: uri for node, uri in uris.items() if node not in known})
        if use:
            for node, answer in fresh.items():
                self._cache[keys[node]] = answer
        return {**known, **fresh}, silent

    def _add_nodes(self, silent: Iterable[str]) -> None:
        self.inventory.add_group("hypervisors")
        self.inventory.add_group("drover_unreachable")
        for name, entry in self.nodes.items():
            self.inventory.add_host(name, group="hypervisors")
            if entry.get("ansible_host"):
                self.inventory.set_variable(name, "ansible_host", entry["ansible_host"])
            self.inventory.set_variable(name, "drover_reachable", name not in silent)
            self.inventory.add_group(group_name("drover_on", name))
        for name in silent:
            self.inventory.add_host(name, group="drover_unreachable")

    def _add_guest(self, guest: Guest) -> None:
        self.inventory.add_host(guest.name)
        for group in guest.groups:
            self.inventory.add_group(group)
            self.inventory.add_child(group, guest.name)
        for name, value in guest.variables.items():
            self.inventory.set_variable(guest.name, name, wrap_var(value))

    def _construct(self, names: Iterable[str]) -> None:
        strict = self.get_option("strict")
        for name in names:
            variables = self.inventory.get_host(name).get_vars()
            self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
            variables = self.inventory.get_host(name).get_vars()
            self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
            self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)
