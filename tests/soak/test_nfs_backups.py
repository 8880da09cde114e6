# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups into a folder on a server of NFS, which a node mounts; and a server that is away in the middle of one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import example_lab, wait_until
from ansible_collections.drover.kvm.tests.lab.vm import FOLDER, NODE, Vm

SITE = Path(__file__).with_name("pools")
SERVER, NIC, NAME = "nas1", "nic1", "saved1"
EXPORT, ROOT = "/srv/backup", "/mnt/backup"
EXPORTS = """mkdir -p {0} /etc/exports.d && chmod 711 {0}
echo '{0} 10.231.5.0/24(rw,sync,no_subtree_check,{1})' > /etc/exports.d/backup.exports
systemctl start nfs-server && exportfs -ra"""
# As docs/backups.md has it.
OPTIONS = "vers=4.2,softerr,timeo=100,retrans=2"
MOUNT = f"mkdir -p {ROOT}; mountpoint -q {ROOT} || mount -t nfs -o {OPTIONS} 10.231.5.10:{EXPORT} {ROOT}"
# What the guest has written is sent so slowly that there is time to take the server away; bytes a second.
SLOW = "tc qdisc replace dev nic1 root tbf rate {} burst 64k latency 400ms"
# A server that is silent is given up after 60 s, for each call of the few that one after the other find that out.
BOUND = 600


class Saved(Vm):
    """The VM and its backups."""

    def backup(self, check: bool = False, **options: Any) -> dict[str, Any]:
        """Module backup."""
        return self.site.task(NODE, "backup", check, name=NAME, path=ROOT, **options)

    def made(self, **options: Any) -> dict[str, Any]:
        """The same; AssertionError when it failed."""
        done = self.backup(**options)
        assert not done["failed"], done
        found: dict[str, Any] = done["backup"]
        return found

    def server(self, command: str) -> str:
        """What a command says on the server."""
        return self.site.ssh(SERVER, command, timeout=300).strip()

    def left(self) -> list[str]:
        """What the server has of backups that are not whole."""
        found = self.server(f"ls -A {EXPORT}/{NAME}").split()
        return [one for one in found if one.startswith(".") and one != ".lock"]

    def digest(self, path: str, kind: str = "qcow2") -> str:
        """Of what a guest would see in an image."""
        made = f"qemu-img convert -U -f {kind} -O raw {path} /srv/seen.raw && sha256sum /srv/seen.raw; rm /srv/seen.raw"
        return self.site.ssh(NODE, made, timeout=300).split()[0]

    def interrupted(self, act: str, **options: Any) -> dict[str, Any]:
        """A backup in the middle of which something is done to the server: what the module said, and `seconds`."""
        answers: list[dict[str, Any]] = []
        self.site.ssh(NODE, SLOW.format("16mbit"))
        try:
            run = threading.Thread(target=lambda: answers.append(self.backup(**options)))
            run.start()
            seen = f"find {EXPORT}/{NAME}/.*.part -name 'vd*.copy' -size +4M"
            wait_until(lambda: self.site.ssh(SERVER, seen, check=False) != "", 300, "the copy comes to the server")
            begin = time.monotonic()
            if act:
                self.server(act)
            else:
                self._silence()
            run.join(BOUND + 60)
        finally:
            self.site.ssh(NODE, "tc qdisc del dev nic1 root", check=False)
        assert answers, "the module has not ended"
        print(act or "silent", answers[0], f"after {time.monotonic() - begin:.0f} s")
        assert answers[0]["failed"] and "Traceback" not in str(answers[0]), answers
        return {**answers[0], "seconds": time.monotonic() - begin}

    def _silence(self) -> None:
        """The server is silent until the kernel has given up what it was asked to write, and some more."""
        self.site.lab.cut(SERVER, NIC, silent=True)
        try:
            given_up = "journalctl --dmesg --no-pager --since -1min | grep -c 'not responding, timed out'"
            wait_until(lambda: int(self.site.ssh(NODE, given_up, check=False)) > 0, 300, "the kernel gives up")
        finally:
            self.site.lab.restore(SERVER, NIC)

    def is_as_before(self, last: dict[str, Any]) -> None:
        """It ran on, nothing but its last backup is there, and the next one is based on that."""
        assert self.state().startswith("running"), self.state()
        self.counts()
        assert self.site.ssh(NODE, "pgrep -a 'qemu-(img|io|nbd)'", check=False) == ""
        job = self.site.ssh(NODE, f"virsh domjobinfo {NAME}", check=False)
        assert "Backup" not in job, job
        good = self.backup(type="incremental")
        assert not good["failed"] and good["backup"]["base"] == last["id"], good
        assert self.left() == []
        assert not self.backup(state="verified")["damaged"]


@pytest.fixture(scope="module")
def saved() -> Iterator[Saved]:
    """A VM that counts on a node which has mounted the folder."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-nfs"), SITE) as nodes:
        nodes.ssh(SERVER, EXPORTS.format(EXPORT, "no_root_squash"), timeout=300)
        nodes.ssh(NODE, MOUNT, timeout=300)
        # Emulated and busy, its libvirt takes longer to start than a module waits for it.
        wait_until(lambda: "qemu" in nodes.ssh(NODE, "virsh uri", check=False, timeout=300), 300, "libvirt answers")
        found = Saved(nodes, NAME, {"vda": "qcow2", "vdb": "qcow2"})
        found.make()
        found.fill(96)
        yield found


@pytest.mark.parametrize("mode", ["711", "777"])
def test_a_server_where_root_is_nobody_is_refused(saved: Saved, mode: str) -> None:
    before = saved.server(f"ls -A {EXPORT}")
    try:
        saved.server(f"{EXPORTS.format(EXPORT, 'root_squash')}; chmod {mode} {EXPORT}")
        for check in (True, False):
            done = saved.backup(check)
            assert done["failed"] and "no_root_squash" in done["msg"], done
    finally:
        saved.server(EXPORTS.format(EXPORT, "no_root_squash"))
    assert saved.server(f"ls -A {EXPORT}") == before


def test_a_chain_is_made_proved_and_restored(saved: Saved) -> None:
    seen = {}
    for kind in ("full", "incremental", "incremental"):
        saved.counts()
        saved.virsh("suspend")
        try:
            kept = saved.digest(f"{FOLDER}/{NAME}-vda.qcow2")
            made = saved.made(type=kind)
        finally:
            saved.virsh("resume")
        assert made["type"] == kind
        seen[made["id"]] = kept
    assert len(set(seen.values())) == 3 and saved.left() == []
    # Nobody else on the server can read it.
    modes = saved.server(f"stat -c '%a %U' {EXPORT}/{NAME}/{made['id']} {EXPORT}/{NAME}/{made['id']}/*").split("\n")
    assert set(modes[1:]) == {"600 root"} and modes[0] == "700 root", modes
    verified = saved.backup(state="verified")
    assert not verified["changed"] and verified["damaged"] == {}
    for backup_id, kept in seen.items():
        folder = f"/srv/back/{backup_id}"
        saved.site.ssh(NODE, f"mkdir -p {folder}")
        single = {"id": backup_id, "disks": ["vda"], "directory": folder}
        restored = saved.site.task(NODE, "restore", name=NAME, path=ROOT, **single)
        assert not restored["failed"] and saved.digest(restored["restored"]["files"][0]) == kept, restored
    saved.site.ssh(NODE, "rm -r /srv/back")
    whole = saved.site.task(NODE, "restore", name=NAME, path=ROOT, new_name="saved2", directory=FOLDER)
    assert not whole["failed"], whole
    assert saved.digest(f"{FOLDER}/drover-saved2-0.qcow2") == kept
    gone = saved.site.task(NODE, "vm", name="saved2", state="absent", remove_disks=True)
    assert not gone["failed"], gone


def test_a_server_that_was_silent_costs_the_backup_and_no_more(saved: Saved) -> None:
    last = saved.made(type="incremental")
    failed = saved.interrupted("", type="full")
    assert failed["seconds"] < BOUND, failed
    saved.is_as_before(last)


def test_an_export_that_is_gone_is_an_error_at_once(saved: Saved) -> None:
    last = saved.made(type="incremental")
    failed = saved.interrupted("exportfs -ua && exportfs -f", type="full")
    assert failed["seconds"] < BOUND, failed
    saved.counts()
    # It is said before anything is begun, also in check mode.
    for check in (True, False):
        assert saved.backup(check)["failed"]
    saved.server("exportfs -ra")
    saved.is_as_before(last)
