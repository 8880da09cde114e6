# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A full backup of a running VM by module backup, beside virsh and qemu-img by hand, interleaved."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _later
from ansible_collections.drover.kvm.plugins.module_utils._backup import job
from ansible_collections.drover.kvm.tests.benchmarks.measure import report, typical
from ansible_collections.drover.kvm.tests.unit import libvirt_server
from ansible_collections.drover.kvm.tests.unit.images import qemu_img
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_backup import Machine, libvirt

DATA, ROUNDS, GOAL = 384 << 20, 5, 1.1


@pytest.fixture
def machine(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A VM that runs, with programs on its first disk."""
    with libvirt_server.private_libvirtd() as daemon:
        found = Machine(tmp_path, daemon.uri(), capsys)
        monkeypatch.setattr(_later, "run", found.systemd)
        raw = tmp_path / "raw"
        with raw.open("wb") as out:
            for program in sorted(Path("/usr/bin").iterdir()):
                if program.is_file() and not program.is_symlink() and out.tell() < DATA:
                    out.write(program.read_bytes())
            out.truncate(DATA)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, found.disk("vda"))
        raw.unlink()
        found.vm.create()
        yield found
        found.vm.destroy()
        found.vm.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        found.connection.close()


def by_hand(machine: Machine, folder: Path) -> tuple[float, float]:
    """The seconds until both disks are copied and packed, and until they were compared and have checksums too."""
    begin = time.monotonic()
    folder.mkdir()
    copies = {target: str(folder / f"{target}.copy") for target in machine.formats}
    virsh = ["virsh", "-q", "-c", machine.uri]
    (folder / "job.xml").write_text(job.backup_xml(copies, ["sda"], None, []))
    subprocess.run([*virsh, "backup-begin", "web1", str(folder / "job.xml")], check=True, capture_output=True)
    while subprocess.run([*virsh, "backup-dumpxml", "web1"], capture_output=True, check=False).returncode == 0:
        time.sleep(0.3)
    packed = ["-c", "-o", "compression_type=zstd", "-m", "8", "-W"]
    for target, copy in copies.items():
        qemu_img("convert", "-q", *packed, "-O", "qcow2", copy, folder / f"{target}.qcow2")
    bare = time.monotonic() - begin
    for target, copy in copies.items():
        qemu_img("compare", "-q", copy, folder / f"{target}.qcow2")
        qemu_img("check", "-q", folder / f"{target}.qcow2")
        Path(copy).unlink()
    subprocess.run(["sync", "-f", str(folder)], check=True)
    names = [f"{target}.qcow2" for target in copies]
    subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True)
    return bare, time.monotonic() - begin


def test_a_full_backup_beside_the_same_by_hand(machine: Machine, tmp_path: Path) -> None:
    bare, proved, ours = [], [], []
    for number in range(ROUNDS):
        seconds = by_hand(machine, tmp_path / f"hand{number}")
        bare.append(seconds[0])
        proved.append(seconds[1])
        begin = time.monotonic()
        done = machine.run(keep=1)
        ours.append(time.monotonic() - begin)
        assert not done.get("failed"), done["msg"]
        shutil.rmtree(tmp_path / f"hand{number}")
        shutil.rmtree(machine.root / "web1")
    over, over_bare = (typical(ours) / typical(other) for other in (proved, bare))
    rows = [
        ("virsh backup-begin and qemu-img convert", f"{typical(bare):.2f} s"),
        ("the same, compared, checked, written out, with checksums", f"{typical(proved):.2f} s"),
        ("module backup", f"{typical(ours):.2f} s, {over:.2f} times that (goal: {GOAL}), {over_bare:.2f} the first"),
    ]
    report(f"A full backup of {DATA >> 20} MiB of programs", rows)
    assert over <= GOAL, rows
