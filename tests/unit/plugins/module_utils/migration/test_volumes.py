# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of disks that are copied: at the destination against libvirt's test driver, at the source on real files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._domain import metadata
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Refused
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect, libvirt
from ansible_collections.drover.kvm.plugins.module_utils._migration import volumes
from ansible_collections.drover.kvm.tests.unit import libvirt_server

pytestmark = pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt")
UUID = "7d4da458-de51-4138-9921-aae15234a969"
COPY = {"target": "vda", "path": "/srv/vm/a.qcow2", "format": "qcow2", "size": 2**20}
HOOK = Path(__file__).resolve().parents[5] / "roles/hypervisor/files/drover-copies"


class Connection:
    """The test driver knows no folders of pools: here the pool of a folder has its name."""

    def __init__(self, real):
        self.real = real

    def __getattr__(self, name):
        if name == "storagePoolLookupByTargetPath":
            return lambda folder: self.real.storagePoolLookupByName(Path(folder).name)
        return getattr(self.real, name)


@pytest.fixture
def there(tmp_path):
    """A node on which /srv/vm is a pool."""
    path = tmp_path / "node.xml"
    path.write_text("<node/>", encoding="utf-8")
    with connect(f"test://{path}") as node:
        node.connection.storagePoolCreateXML(volumes.pool_xml("/srv/vm").replace(volumes.POOL, "vm"), 0)
        node.connection = Connection(node.connection)
        yield volumes.Volumes(node)


def test_a_folder_without_a_pool_gets_one_for_as_long_as_it_takes(there):
    assert there.room(["/srv/other"])["/srv/other"]["names"] == []
    assert [pool.name() for pool in there.connection.listAllStoragePools(0)] == ["vm"]


def names(there):
    return sorted(there.room(["/srv/vm"])["/srv/vm"]["names"])


def test_a_copy_has_a_claim_until_it_is_a_vms_disk(there):
    there.make([COPY])
    assert names(there) == ["a.qcow2", "a.qcow2.drover-copy"]
    there.make([COPY])
    there.release([COPY["path"]])
    there.release([COPY["path"]])
    assert names(there) == ["a.qcow2"]


@pytest.mark.slow
def test_what_has_no_claim_is_never_deleted(there):
    there.make([COPY])
    there.release([COPY["path"]])
    there.remove([COPY["path"]])
    assert names(there) == ["a.qcow2"]
    with pytest.raises(Failed):
        there.make([COPY])
    assert names(there) == ["a.qcow2"]


def test_what_libvirt_makes_by_itself_is_ours_while_it_has_a_claim(there):
    there.claim([COPY["path"]])
    there.claim([COPY["path"]])
    assert names(there) == ["a.qcow2.drover-copy"]
    # What libvirt has made, and left as the move failed.
    there._make(PurePosixPath(COPY["path"]), "raw", 7)
    there.claim([COPY["path"]])
    assert names(there) == ["a.qcow2.drover-copy"]
    there._make(PurePosixPath(COPY["path"]), "raw", 7)
    there.release([COPY["path"]])
    with pytest.raises(Refused, match="has a file /srv/vm/a.qcow2 already"):
        there.claim([COPY["path"]])
    assert names(there) == ["a.qcow2"]


def test_what_was_begun_is_deleted_whole(there):
    there.make([COPY, {**COPY, "path": "/srv/vm/b.raw", "format": "raw"}])
    there.remove([COPY["path"], "/srv/vm/b.raw", "/srv/vm/never-made.raw"])
    assert names(there) == []


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(b"data")
    os.setxattr(path, file.MARK, UUID.encode())
    return path


def test_our_own_file_goes_from_the_source(original):
    assert volumes.remove_originals([str(original), "/nowhere/b.raw"], UUID, lambda path: False) == []
    assert not original.exists()


def test_a_file_that_is_not_ours_or_in_use_stays(original):
    assert volumes.remove_originals([str(original)], "another", lambda path: False) == [str(original)]
    assert volumes.remove_originals([str(original)], UUID, lambda path: True) == [str(original)]
    assert original.exists()


def test_a_file_that_another_one_is_based_on_stays(original):
    overlay = original.with_name("theirs.qcow2")
    words = ["-q", "-f", "qcow2", "-F", "raw", "-b", str(original), str(overlay)]
    subprocess.run(["qemu-img", "create", *words], check=True)
    assert volumes.remove_originals([str(original)], UUID, lambda path: False) == [str(original)]
    with pytest.raises(Refused, match=r"is what .*theirs\.qcow2 is based on"):
        file.remove(f"file:{original}", UUID)
    overlay.unlink()
    assert volumes.remove_originals([str(original)], UUID, lambda path: False) == [] and not original.exists()


@pytest.mark.parametrize("claimed", [True, False])
def test_the_hook_marks_what_was_made_for_a_copy(tmp_path, claimed):
    path = tmp_path / "a.raw"
    path.write_bytes(b"")
    if claimed:
        Path(f"{path}{volumes.CLAIM}").touch()
    marker = metadata.marker_xml({"id": "1", "from": "hv1", "to": "hv2", "was": "running", "copies": [str(path)]})
    marker = marker.replace("<migration", f"<drover:migration xmlns:drover='{metadata.MARKER_NAMESPACE}'")
    marker = marker.replace("</migration", "</drover:migration")
    xml = f"<domain><uuid>{UUID}</uuid><metadata>{marker}</metadata></domain>"
    command = [sys.executable, str(HOOK), "vm1", "migrate", "begin", "-"]
    assert subprocess.run(command, input=xml, capture_output=True, text=True, check=True).stdout == ""
    assert file.read_mark(str(path)) == (UUID if claimed else None)


def test_the_marker_tells_what_is_copied():
    values = {"id": "1", "from": "hv1", "to": "hv2", "was": "running", "autostart": True, "started": 7}
    for copies in ({}, {"copies": ["/srv/a b.raw", "/srv/c.qcow2"]}):
        assert metadata.marker_from_text(metadata.marker_xml({**values, **copies})) == {**values, **copies}


@pytest.fixture(scope="module")
def daemon():
    """A libvirt of its own, with folders of its own."""
    if libvirt_server.missing():
        pytest.skip(f"no private libvirtd: {libvirt_server.missing()}")
    with libvirt_server.private_libvirtd() as running:
        yield running


@pytest.fixture
def real(daemon):
    with connect(daemon.uri()) as node:
        yield volumes.Volumes(node)


VARIABLES, FOLDER = "/var/lib/libvirt/qemu/nvram/web1_VARS.fd", f"/var/lib/libvirt/swtpm/{UUID}"
KEYS = f"{FOLDER}/tpm2/tpm2-00.permall"
CONTENT = bytes(range(256)) * 3000


def test_a_file_of_uefi_and_one_of_a_tpm_are_made_read_and_deleted(daemon, real):
    assert real.taken([VARIABLES, KEYS]) == [] and not daemon.path(FOLDER).exists()
    for path in (VARIABLES, KEYS):
        real.write(path, CONTENT)
        # One that was cut off is begun anew.
        real.write(path, CONTENT[:-9])
        assert daemon.path(path).read_bytes() == CONTENT[:-9] == real.read(path)
        assert daemon.path(path).stat().st_mode & 0o777 == 0o600 and real.taken([path]) == []
    assert daemon.path(f"{FOLDER}/tpm2").stat().st_mode & 0o777 == 0o700
    real.release([VARIABLES, KEYS])
    assert real.taken([VARIABLES, KEYS]) == [VARIABLES, KEYS]
    with pytest.raises(Failed):
        real.write(KEYS, CONTENT)
    real.remove([VARIABLES, KEYS])
    assert real.read(KEYS) == real.read(VARIABLES) == CONTENT[:-9]
    daemon.path(f"{FOLDER}/tpm2/.lock").touch()
    for _time in range(2):
        real.forget([VARIABLES, KEYS])
        assert not daemon.path(VARIABLES).exists() and not list(daemon.path(f"{FOLDER}/tpm2").iterdir())
    assert real.connection.listAllStoragePools(0) == []
