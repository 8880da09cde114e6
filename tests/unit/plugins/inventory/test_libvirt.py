# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin through ansible-inventory and ansible-playbook; each hypervisor is a test driver of libvirt."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._libvirt import libvirt

pytestmark = pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt")
COLLECTIONS = Path(__file__).resolve().parents[7]
RUNNING = 1
DOMAIN = """<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
<name>{name}</name><uuid>{uuid}</uuid><description>{description}</description>
<metadata><drover:vm xmlns:drover="urn:drover:kvm:1" version="1"><tags>{tags}</tags></drover:vm></metadata>
<memory>1048576</memory><os><type>hvm</type></os><test:runstate>{state}</test:runstate></domain>"""
PLAYBOOK = """
- hosts: all
  gather_facts: false
  connection: local
  tasks:
    - ansible.builtin.debug:
        msg: "{{ drover_description | default('') }} {{ drover_tags | default([]) }} {{ hostvars[inventory_hostname] }}"
    - ansible.builtin.template: {src: all.j2, dest: "{{ playbook_dir }}/out-{{ inventory_hostname }}", mode: "0600"}
"""
TEMPLATE = "{{ drover_description | default('') }} {{ vars['drover_description'] | default('') }}"


def domain(name, state=RUNNING, tags=(), description="", number=None):
    tags = "".join(f"<drover:tag>{escape(tag)}</drover:tag>" for tag in tags)
    number = str(uuid.uuid5(uuid.NAMESPACE_DNS, number or name))
    return DOMAIN.format(name=escape(name), uuid=number, description=escape(description), tags=tags, state=state)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


class Site:
    """A configuration file and its nodes."""

    def __init__(self, folder):
        self.folder = folder
        self.nodes = {}
        self.more = {}

    def node(self, name, *domains, **entry):
        path = self.folder / f"{name}.xml"
        path.write_text(f"<node>{''.join(domains)}</node>", encoding="utf-8")
        self.nodes[name] = {"uri": f"test://{path}", **entry}

    def write(self):
        path = self.folder / "site.drover.yml"
        path.write_text(json.dumps({"plugin": "drover.kvm.libvirt", "hypervisors": self.nodes, **self.more}))
        return path

    def call(self, program, *args):
        """Run one of Ansible's programs; standard output and error."""
        code = f"import sys; from ansible.cli.{program} import main; main()"
        environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(self.folder)}
        environment.update(ANSIBLE_NOCOLOR="1", ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1")
        command = [sys.executable, "-c", code, "-i", str(self.write()), *args]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        return done.returncode, done.stdout, done.stderr

    def list(self):
        """What ansible-inventory says: variables by host, hosts by group, and the warnings as one line."""
        code, out, err = self.call("inventory", "--list")
        assert code == 0, err
        # ansible-inventory marks each text that is not a template.
        data = json.loads(out, object_hook=lambda value: value.get("__ansible_unsafe", value))
        hosts = data.pop("_meta")["hostvars"]
        return hosts, {name: set(group.get("hosts", ())) for name, group in data.items()}, " ".join(err.split())


def test_vms_are_hosts_in_groups_by_state_node_and_tag(site):
    site.node("hv1", domain("web1", tags=["web", "a:b"]), domain("db1", state=5), ansible_host="10.1.0.11")
    site.node("hv2", domain("web2", state=3, tags=["web"]))
    hosts, groups, warnings = site.list()
    assert groups["hypervisors"] == {"hv1", "hv2"} and groups["drover_vms"] == {"web1", "web2", "db1"}
    assert groups["drover_running"] == {"web1"} and groups["drover_stopped"] == {"db1"}
    assert groups["drover_paused"] == {"web2"} and groups["drover_on_hv1"] == {"web1", "db1"}
    assert groups["drover_tag_web"] == {"web1", "web2"} and groups["drover_tag_a_b"] == {"web1"}
    assert hosts["hv1"] == {"ansible_host": "10.1.0.11", "drover_reachable": True}
    web1 = hosts["web1"]
    assert web1["drover_node"] == "hv1" and web1["drover_memory"] == {"current": 2**30, "maximum": 2**30}
    assert all(name.startswith("drover_") for name in web1) and "WARNING" not in warnings


def test_nodes_that_are_dead_or_frozen_cost_no_more_than_the_time_limit(site):
    """A socket that takes connections and never answers is what a frozen libvirtd looks like."""
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(site.folder / "frozen"))
        frozen.listen(8)
        site.node("hv1", domain("web1"))
        # What Ansible itself takes depends on how busy this machine is: count only what the two nodes add.
        start = time.monotonic()
        site.list()
        floor = time.monotonic() - start
        site.nodes["hv2"] = {"uri": f"qemu+unix:///system?socket={site.folder}/frozen"}
        site.nodes["hv3"] = {"uri": f"qemu+unix:///system?socket={site.folder}/nobody"}
        site.more = {"timeout": 3}
        start = time.monotonic()
        hosts, groups, warnings = site.list()
        assert time.monotonic() - start - floor < 3 + 4
    assert groups["drover_unreachable"] == {"hv2", "hv3"} and groups["drover_running"] == {"web1"}
    assert hosts["hv2"]["drover_reachable"] is False and groups["hypervisors"] == {"hv1", "hv2", "hv3"}
    assert "hv2 gave no answer within 3 s" in warnings and "hv3: open qemu+unix" in warnings


def test_text_of_a_guest_is_never_evaluated(site):
    canary = site.folder / "canary"
    evil = f"{{{{ lookup('ansible.builtin.pipe', 'touch {canary}') }}}}{{% if true %}}x"
    site.node(
        "hv1",
        domain("web1", description=evil, tags=[evil]),
        domain("{{ 7*7 }}"),
        domain("ansible_host", description="x"),
    )
    site.more = {"strict": True, "keyed_groups": [{"key": "drover_description", "prefix": "d"}]}
    site.more["compose"] = {"mine": "drover_description", "ansible_port": "22"}
    hosts, groups, warnings = site.list()
    assert hosts["web1"]["drover_description"] == evil and "{{ 7*7 }}" not in hosts
    assert "VM '{{ 7*7 }}' on hv1 is left out of the inventory" in warnings and groups["drover_vms"] == {
        "web1",
        "ansible_host",
    }
    (site.folder / "play.yml").write_text(PLAYBOOK)
    (site.folder / "all.j2").write_text(TEMPLATE)
    _code, out, err = site.call(
        "playbook", str(site.folder / "play.yml"), "-e", f"ansible_python_interpreter={sys.executable}"
    )
    assert "failed=0" in out, out + err
    assert (site.folder / "out-web1").read_text().count("lookup(") == 2
    assert not canary.exists()


def test_names_that_would_mean_another_host_are_left_out(site):
    site.node("hv1", domain("hv2"), domain("localhost"), domain("a b"), domain("-rf"), domain("good"))
    site.node("hv2")
    hosts, groups, warnings = site.list()
    assert groups["drover_vms"] == {"good"} and hosts["hv2"] == {"drover_reachable": True}
    for name in ("'hv2'", "'localhost'", "'a b'", "'-rf'"):
        assert f"VM {name} on hv1 is left out" in warnings


def test_a_vm_that_runs_twice_is_shown_and_a_stale_definition_is_not(site):
    site.node("hv1", domain("web1"), domain("web2", state=5), domain("old", number="same"))
    site.node("hv2", domain("web1"), domain("web2"), domain("new", number="same"))
    hosts, groups, warnings = site.list()
    assert groups["drover_duplicate_running"] == {"web1", "old", "new"}
    assert groups["drover_on_hv1"] >= {"web1"} and groups["drover_on_hv2"] >= {"web1", "web2"}
    assert hosts["web2"]["drover_node"] == "hv2" and "web2" not in groups["drover_on_hv1"]
    assert hosts["web2"]["drover_seen"] == {"hv1": "stopped", "hv2": "running"}
    assert "VM 'web1' runs on hv1 and hv2 at the same time" in warnings


def test_the_same_name_for_different_vms_is_a_warning(site):
    site.node("hv1", domain("web1", number="one"))
    site.node("hv2", domain("web1", number="two", state=5))
    assert "'web1' is the name of different VMs on hv1 and hv2" in site.list()[2]


def test_answers_are_kept_and_silent_nodes_asked_again(site):
    site.node("hv1", domain("web1"))
    site.nodes["hv2"] = {"uri": f"test://{site.folder}/later.xml"}
    site.more = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "cache_connection": str(site.folder / "c")}
    assert site.list()[1]["drover_unreachable"] == {"hv2"}
    (site.folder / "later.xml").write_text(f"<node>{domain('web2')}</node>")
    (site.folder / "hv1.xml").unlink()
    hosts, groups, _warnings = site.list()
    assert groups["drover_vms"] == {"web1", "web2"} and not groups.get("drover_unreachable")
    assert hosts["web1"]["drover_node"] == "hv1"


def test_own_groups_and_variables(site):
    site.node("hv1", domain("web1", tags=["web"]), domain("db1"))
    site.more = {
        "groups": {"shop": "'web' in drover_tags"},
        "compose": {"ansible_host": "inventory_hostname ~ '.vm.example.org'"},
        "keyed_groups": [{"key": "drover_arch", "prefix": "arch"}],
    }
    hosts, groups, _warnings = site.list()
    assert groups["shop"] == {"web1"} and hosts["db1"]["ansible_host"] == "db1.vm.example.org"
    assert groups["arch_i686"] == {"web1", "db1"}
    assert hosts["hv1"] == {"drover_reachable": True}


@pytest.mark.parametrize(
    "nodes, words",
    [
        ({"a b": None}, "'a b' is not the name of a node"),
        ({"hv1": {"url": "x"}}, "hypervisors.hv1: write nothing"),
        ({"hv1": "qemu:///system"}, "hypervisors.hv1: write nothing"),
        ([], "hypervisors"),
    ],
)
def test_a_wrong_configuration_says_where(site, nodes, words):
    site.nodes = nodes
    code, _out, err = site.call("inventory", "--list")
    assert code != 0 and words in " ".join(err.split())
