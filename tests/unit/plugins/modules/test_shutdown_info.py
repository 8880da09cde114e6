# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module shutdown_info: files as the kernel shows them, and a systemctl that knows units."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _shutdown
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.modules import shutdown_info


class Machine:
    """A machine in a folder."""

    def __init__(self, root):
        self.root, self.units = root, ["cron.service", "drover-firewall.service", "libvirtd.service"]
        self.targets = ""
        for folder in ("proc/net/rpc", "proc/self", "target/core/iblock_0/v"):
            (root / folder).mkdir(parents=True)
        self.process(1, "/sbin/init")
        self.write("proc/net/rpc/nfsd", "rc 0 0 0\nth 0 0 0.000 0.000\n")
        self.write("proc/drbd", "version: 8.4.11 (api:1/proto:86-101)\n 0: cs:Unconfigured\n")

    def write(self, path, text):
        (self.root / path).write_text(text, encoding="utf-8")

    def process(self, pid, *arguments):
        folder = self.root / "proc" / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_bytes("".join(f"{word}\0" for word in arguments).encode())

    def run_json(self, argv, timeout):
        assert argv[:2] == ("systemctl", "list-units") and argv[-1] == "--output=json" and timeout
        return [{"unit": name, "load": "loaded", "active": "active", "sub": "running"} for name in self.units]

    def run(self, argv, timeout):
        assert argv[0] == "tgtadm" and argv[-2:] == ("--op", "show") and timeout
        if self.targets is None:
            raise Failed("tgtadm failed: can't connect")
        return self.targets


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that nobody needs."""
    found = Machine(tmp_path)
    places = {"PROCESSES": "proc", "TARGETS": "target", "NFS": "proc/net/rpc/nfsd", "DRBD": "proc/drbd"}
    for name, path in places.items():
        monkeypatch.setattr(_shutdown, name, tmp_path / path)
    monkeypatch.setattr(_shutdown, "run_json", found.run_json)
    monkeypatch.setattr(_shutdown, "run", found.run)
    return found


@pytest.fixture
def ask(capsys):
    """Run the module."""

    def run(**options):
        with patch_module_args(options), pytest.raises(SystemExit):
            shutdown_info.main()
        answer = json.loads(capsys.readouterr().out)
        assert answer["changed"] is False
        return answer["reasons"]

    return run


def test_an_idle_machine_can_go(machine, ask):
    # What libvirt starts to learn what QEMU can do, the agent of a node that is a VM, a thread of the kernel.
    machine.process(50, "/usr/bin/qemu-system-x86_64", "-S", "-machine", "none,accel=kvm:tcg", "-daemonize")
    machine.process(51, "/usr/sbin/qemu-ga", "--daemonize")
    machine.process(52)
    assert ask() == []


def test_a_machine_without_these_servers_can_go(machine, ask):
    for name in ("proc/net/rpc/nfsd", "proc/drbd"):
        (machine.root / name).unlink()
    machine.units = []
    assert ask() == []


def test_vms_copies_and_moves_are_named_whatever_libvirt_knows(machine, ask):
    machine.process(60, "/usr/bin/qemu-system-x86_64", "-name", "guest=db.eu,debug-threads=on", "-machine", "q35")
    machine.process(61, "qemu-system-x86_64", "-nodefaults", "-machine")
    machine.process(62, "/usr/bin/qemu-nbd", "--socket=/run/x")
    machine.process(63, "/usr/bin/kvm", "-name", "by-hand")
    machine.units.append("drover-migrate-6c5d.service")
    assert ask(ignored=["drover-*"]) == [
        "kvm runs for by-hand",
        "qemu-nbd runs",
        "qemu-system-x86_64 runs",
        "qemu-system-x86_64 runs for db.eu",
        "drover-migrate-6c5d.service moves a VM",
    ]


SERVICES = [
    "ceph-osd@3.service",
    "ceph-mon@hv3.service",
    "ceph-0a1b-2c@osd.3.service",
    "ceph-0a1b-2c@mon.hv3.service",
    "corosync.service",
    "smbd.service",
]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_others_have_is_named_unless_it_may_stop(machine, ask, name):
    machine.units.append(name)
    assert ask() == [f"{name} runs"]
    assert ask(ignored=["ceph-*", "corosync.service", "smbd.service"]) == []


def test_tgt_is_needed_when_it_serves_something(machine, ask):
    machine.units.append("tgt.service")
    assert ask() == []
    machine.targets = "Target 1: iqn.2026-11.lab:s1\n    System information:\nTarget 12: iqn.2026-11.lab:s2\n"
    assert ask() == ["tgt serves iqn.2026-11.lab:s1, iqn.2026-11.lab:s2"]
    machine.targets = None
    assert ask() == ["tgt.service runs, and does not say what it serves (tgtadm failed: can't connect)"]
    assert ask(ignored=["tgt.service"]) == []


def test_services_of_the_site_are_named_too(machine, ask):
    machine.units += ["haproxy.service", "ceph-crash.service"]
    assert ask() == []
    assert ask(needed=["haproxy*"]) == ["haproxy.service runs"]


def test_servers_in_the_kernel_are_seen_in_the_kernel(machine, ask):
    """Their services have started something and ended: systemd shows them alike with and without clients."""
    machine.units += ["nfs-server.service", "rtslib-fb-targetctl.service"]
    machine.write("proc/net/rpc/nfsd", "rc 0 7 9\nth 8 0 0.000 0.000\n")
    machine.write("proc/drbd", "version: 8.4.11\n 0: cs:Connected ro:Primary/Secondary\n 2: cs:WFConnection ro:x\n")
    (machine.root / "target/iscsi/iqn.2026-11.lab:s1").mkdir(parents=True)
    (machine.root / "target/iscsi/discovery_auth").mkdir()
    assert ask(ignored=["nfs-server.service"]) == [
        "LIO serves iqn.2026-11.lab:s1",
        "the NFS server of the kernel runs",
        "DRBD has drbd0, drbd2",
    ]
