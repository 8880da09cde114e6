# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real libvirt over ssh: facts, secrets, pools, adoption of a VM that was made by hand, a frozen daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import COLLECTIONS

NODE = "hv3"
CANARY = "corr3ct-h0rse"
BY_HAND = """<domain type='qemu'><name>byhand</name><description>{{ 7*7 }}</description>
<memory unit='MiB'>64</memory><vcpu current='1'>2</vcpu><os><type machine='pc'>hvm</type><boot dev='hd'/></os>
<cpu mode='host-model'/><features><acpi/></features><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/srv/byhand.raw'/>
<target dev='vda' bus='virtio'/></disk><disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
<disk type='network' device='disk'><source protocol='nbd' name='data'><host name='192.0.2.1'/></source>
<target dev='vdb' bus='virtio'/></disk>
<sound model='ich6'/><graphics type='vnc' passwd='s3cr3tv'/></devices></domain>"""


class Station:
    """The controller: Ansible's programs with the collection, on the lab's inventory."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder

    def call(self, program: str, *args: str) -> tuple[int, str]:
        """Run a program; its status and what it printed."""
        code = f"import sys; from ansible.cli.{program} import main; sys.argv[0] = 'ansible'; main()"
        environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "1"}
        command = [sys.executable, "-c", code, *args]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        return done.returncode, done.stdout + done.stderr

    def play(self, *tasks: dict[str, Any]) -> list[dict[str, Any]]:
        """Run tasks on the node; the result of each. Whatever is printed at the highest verbosity holds no secret."""
        results = self.folder / "results"
        results.mkdir(exist_ok=True)
        numbered = []
        for number, task in enumerate(tasks):
            numbered.append({"name": f"Task {number}", "register": f"result{number}", "ignore_errors": True, **task})
            copy = {"content": f"{{{{ result{number} | to_json }}}}", "dest": f"{results}/{number}", "mode": "0600"}
            numbered.append(
                {"name": "Keep it", "ansible.builtin.copy": copy, "delegate_to": "localhost", "diff": False}
            )
        play = self.folder / "play.yml"
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        play.write_text(json.dumps([{"hosts": NODE, "gather_facts": False, "tasks": numbered}]), encoding="utf-8")
        hosts = self.folder / "hosts.yml"
        hosts.write_text(json.dumps({"all": {"hosts": {"localhost": local}}}), encoding="utf-8")
        args = ("-i", str(self.lab.inventory), "-i", str(hosts), str(play), "--diff", "-vvv")
        code, output = self.call("playbook", *args)
        assert code == 0 and "Traceback" not in output, output
        self.output = output
        return [json.loads((results / str(number)).read_text(encoding="utf-8")) for number in range(len(tasks))]


@pytest.fixture
def station(lab: Lab, tmp_path: Path) -> Station:
    return Station(lab, tmp_path)


@pytest.fixture
def by_hand(lab: Lab) -> Iterator[None]:
    """A VM that no module made."""
    lab.ssh(NODE, f"truncate -s 8M /srv/byhand.raw; cat >/srv/byhand.xml <<'END'\n{BY_HAND}\nEND")
    lab.ssh(NODE, "virsh define /srv/byhand.xml")
    yield
    lab.ssh(NODE, "virsh undefine byhand; rm -f /srv/byhand.raw /srv/byhand.xml", check=False)


def test_a_node_says_what_it_has(station: Station, by_hand: None) -> None:
    (result,) = station.play({"drover.kvm.node_info": {}})
    node = result["node"]
    assert node["name"] == NODE and node["cpu_model"].startswith("<cpu") and "q35" in node["machine_types"]
    assert "byhand" in [vm["name"] for vm in node["domains"]] and node["qemu_version"] and node["libvirt_version"]
    assert "s3cr3tv" not in station.output
    own, more, odd = (
        node["cpu_model"],
        "<cpu match='exact'><model>Skylake-Server</model></cpu>",
        "<cpu><model>X</model></cpu>",
    )
    cpus = [{"vms": [name], "cpu": cpu} for name, cpu in (("own", own), ("more", more), ("odd", odd))]
    (result,) = station.play({"drover.kvm.node_info": {"cpus": cpus}})
    rows = result["node"]["cpu_matrix"]
    assert [(row["vm"], row["node"], row["compatible"]) for row in rows] == [
        ("own", NODE, True),
        ("more", NODE, False),
        ("odd", NODE, False),
    ]
    assert "missing features" in rows[1]["reason"] or "required features" in rows[1]["reason"], rows


def test_a_secret_leaves_no_trace(station: Station, lab: Lab) -> None:
    given = {"usage": "canary", "value": CANARY}
    check = {"drover.kvm.secret": given, "check_mode": True}
    results = station.play(check, {"drover.kvm.secret": given}, {"drover.kvm.secret": given})
    assert [result["changed"] for result in results] == [True, True, False]
    assert results[0]["actions"] == results[1]["actions"] == ["define secret canary", "set its value"]
    value = lab.ssh(NODE, f"virsh secret-get-value {results[1]['secret']['uuid']} --plain")
    assert value.strip() == CANARY and CANARY not in station.output
    (gone,) = station.play({"drover.kvm.secret": {"usage": "canary", "state": "absent"}})
    assert gone["changed"] and "canary" not in lab.ssh(NODE, "virsh secret-list")
    found = lab.ssh(
        NODE, f"journalctl --no-pager | grep -c {CANARY}; grep -rl {CANARY} /root /tmp /var/log", check=False
    )
    assert found.split() == ["0"]


def test_a_pool_is_forgotten_and_its_files_stay(station: Station, lab: Lab) -> None:
    pool = {"name": "canary", "path": "/srv/canary"}
    results = station.play(
        {"drover.kvm.pool": pool},
        {"drover.kvm.pool": pool},
        {"ansible.builtin.copy": {"dest": "/srv/canary/a.iso", "content": "x", "mode": "0600"}},
        {"drover.kvm.pool": {"name": "canary", "state": "absent"}},
    )
    assert [result["changed"] for result in results] == [True, False, True, True]
    assert lab.ssh(NODE, "virsh pool-list --all --name; cat /srv/canary/a.iso; rm -r /srv/canary").split() == ["x"]


def test_a_vm_made_by_hand_is_adopted_without_a_change(station: Station, lab: Lab, by_hand: None) -> None:
    before = lab.ssh(NODE, "virsh dumpxml --security-info byhand")
    (read,) = station.play({"drover.kvm.vm_info": {"names": ["byhand"], "sheet": True}})
    assert read["vms"][0]["sheet_left_out"] == ["disk vdb (of type nbd)", "sound (ich6)"]
    sheet = read["vms"][0]["sheet"]
    # The description is text of a guest, as a template it would be 49.
    sheet["description"] = {"__ansible_unsafe": sheet["description"]}
    results = station.play({"drover.kvm.vm": sheet, "check_mode": True}, {"drover.kvm.vm": sheet})
    assert [(result["changed"], result["actions"]) for result in results] == [(False, [])] * 2, results
    assert lab.ssh(NODE, "virsh dumpxml --security-info byhand") == before


def test_a_frozen_daemon_is_named_in_time(station: Station, lab: Lab, by_hand: None) -> None:
    config = station.folder / "site.drover.yml"
    uri = "qemu+ssh://root@{}/system?no_tty=1&command=" + str(lab.state / "bin/ssh")
    nodes = {name: {"uri": uri.format(name)} for name in ("hv1", "hv2", NODE)}
    config.write_text(json.dumps({"plugin": "drover.kvm.libvirt", "hypervisors": nodes}), encoding="utf-8")
    code, output = station.call("inventory", "-i", str(config), "--graph", "drover_vms")
    assert code == 0 and "byhand" in output
    lab.freeze(NODE, "libvirtd")
    try:
        start = time.monotonic()
        code, output = station.call("inventory", "-i", str(config), "--graph", "drover_unreachable")
        assert code == 0 and f"--{NODE}" in output and f"{NODE} gave no answer" in output, output
        assert time.monotonic() - start < 30
        (result,) = station.play({"drover.kvm.node_info": {}})
        assert result["failed"] and f"hypervisor {NODE} does not answer" in result["msg"]
    finally:
        lab.thaw(NODE, "libvirtd")
    (result,) = station.play({"drover.kvm.node_info": {}})
    assert "node" in result
