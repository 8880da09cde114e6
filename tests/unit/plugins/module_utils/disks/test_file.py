# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files behind disks: what is refused, whatever it is called, and that the format is never guessed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, Refused
from ansible_collections.drover.kvm.tests.unit.corpus import CANARY, ODD_PATHS, PATHS, SYSTEM_PATHS

UUID = "7d4da458-de51-4138-9921-aae15234a969"
MIB = 2**20
NEEDS_QEMU_IMG = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_path_of_a_file(path):
    with pytest.raises(ValueError, match="is not the path of a file"):
        file.check_path(path)


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("path", SYSTEM_PATHS)
def test_the_systems_own_files_also_behind_a_link(tmp_path, path, link):
    (tmp_path / "link").symlink_to(path)
    named = str(tmp_path / "link") if link else file.check_path(path)
    with pytest.raises(Refused, match="belongs to the operating system"):
        file.inspect({"path": named, "format": "raw"})


def test_a_folder_that_leads_into_the_system(tmp_path):
    (tmp_path / "images").symlink_to("/etc")
    with pytest.raises(Refused, match="belongs to the operating system"):
        file.inspect({"path": f"{tmp_path}/images/new.raw", "format": "raw"})


@pytest.mark.parametrize("path", ["log/syslog", "lib/dpkg/status", "spool/cron/crontabs/root", "cache", "backups/a"])
def test_what_the_system_keeps_below_var(tmp_path, path):
    (tmp_path / "link").symlink_to(f"/var/{path}")
    for named in (f"/var/{path}", str(tmp_path / "link")):
        with pytest.raises(Refused, match="belongs to the operating system"):
            file.inspect({"path": named, "format": "raw"})


@pytest.mark.parametrize("path", ["/var/lib/libvirt/images/none.raw", "/var/none/a.raw", "/srv/log/none.raw"])
def test_folders_for_images(path):
    assert file.inspect({"path": path, "format": "raw"}) is None


@pytest.fixture
def host(tmp_path, monkeypatch):
    """What this node itself uses: a swap file and a file that is mounted."""
    swap, mounted = tmp_path / "my swap", tmp_path / "mounted.raw"
    for path in (swap, mounted, tmp_path / "free.raw"):
        path.write_bytes(b"0" * MIB)
    name = str(swap).replace(" ", "\\040")
    (tmp_path / "swaps").write_text(f"Filename\tType\tSize\n{name}    file\t1024\t0\t-2\n", encoding="utf-8")
    loop = tmp_path / "block/loop0/loop"
    loop.mkdir(parents=True)
    (loop / "backing_file").write_text(f"{mounted}\n", encoding="utf-8")
    monkeypatch.setattr(file, "SWAPS", tmp_path / "swaps")
    monkeypatch.setattr(file, "LOOPS", tmp_path / "block")
    return tmp_path


@pytest.mark.parametrize("name", ["my swap", "mounted.raw"])
def test_files_that_the_node_itself_uses(host, name):
    (host / "link").symlink_to(host / name)
    for path in (host / name, host / "link"):
        with pytest.raises(Refused, match="in use by this node itself"):
            file.inspect({"path": str(path), "format": "raw"})
    assert file.inspect({"path": str(host / "free.raw"), "format": "raw"}).size == MIB


@NEEDS_QEMU_IMG
@pytest.mark.parametrize("words", [["-o", "data_file={0}/data"], ["-F", "raw", "-u", "-b", "json:{{}}"]])
def test_what_an_image_leads_to_is_named(tmp_path, words):
    image = tmp_path / "a.qcow2"
    named = [word.format(tmp_path) for word in words]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *named, image, "1M"], check=True)
    assert file.inspect({"path": str(image), "format": "qcow2"}).backing in (f"{tmp_path}/data", "json:{}")


@NEEDS_QEMU_IMG
def test_an_image_is_read_within_limits(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(file, "run_json", lambda argv: said.append(argv) or {"virtual-size": MIB})
    (tmp_path / "a.qcow2").write_bytes(b"0" * MIB)
    file.inspect({"path": str(tmp_path / "a.qcow2"), "format": "qcow2"})
    assert said[0][:3] == ["prlimit", f"--as={2**30}", "--cpu=30"] and "-f" in said[0]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(Refused, match="not a regular file"):
        file.inspect({"path": str(tmp_path / "a"), "format": "raw"})


@NEEDS_QEMU_IMG
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_odd_names_mean_the_very_file(tmp_path, image_format):
    for name in ODD_PATHS:
        options = {"path": file.check_path(f"{tmp_path}/{name}"), "format": image_format}
        assert file.create(options, MIB, UUID)
        file.grow(options, 2 * MIB)
        found = file.inspect(options)
        assert (found.size, found.mark, found.backing) == (2 * MIB, UUID, None), name
    assert sorted(os.listdir(tmp_path)) == sorted(ODD_PATHS) and not Path(CANARY).exists()


@NEEDS_QEMU_IMG
def test_a_file_beside_it_stays(tmp_path):
    (tmp_path / "a.raw.part").write_text("of somebody")
    file.create({"path": f"{tmp_path}/a.raw", "format": "raw"}, MIB, UUID)
    assert (tmp_path / "a.raw.part").read_text() == "of somebody"
    assert sorted(os.listdir(tmp_path)) == ["a.raw", "a.raw.part"]


@NEEDS_QEMU_IMG
def test_a_guest_can_not_turn_its_raw_disk_into_another_file(tmp_path):
    """It may write any header: what says raw is raw, and has neither a backing file nor another size."""
    image = tmp_path / "a.raw"
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", image, "1G"], check=True
    )
    found = file.inspect({"path": str(image), "format": "raw"})
    assert found.backing is None and found.size == image.stat().st_size
    file.grow({"path": str(image), "format": "raw"}, 4 * MIB)
    assert image.stat().st_size == 4 * MIB


@NEEDS_QEMU_IMG
def test_a_copy_is_unfinished_until_it_is_finished(tmp_path):
    path = str(tmp_path / "a.raw")
    file.create({"path": path, "format": "raw"}, MIB, UUID, unfinished=True)
    assert file.is_unfinished(path, UUID) and not file.is_unfinished(path, "another")
    file.finish(path)
    file.finish(path)
    assert not file.is_unfinished(path, UUID) and file.read_mark(path) == UUID


def test_room_is_asked_of_a_folder_that_is_there(tmp_path):
    assert file.room(f"{tmp_path}/a.raw") > 0
    with pytest.raises(Invalid, match="does not exist"):
        file.room(f"{tmp_path}/none/a.raw")
