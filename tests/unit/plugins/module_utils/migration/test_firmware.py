# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UEFI and TPM of a VM that moves: what it needs, what a node lacks, which file of variables may go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._domain import state_files
from ansible_collections.drover.kvm.plugins.module_utils._migration import ends, firmware
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse

CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
VARS = "/var/lib/libvirt/qemu/nvram/web1_VARS.fd"
RUNS = (
    f"<domain><name>web1</name><os firmware='efi'><loader type='pflash'>{CODE}</loader><nvram>{{}}</nvram></os>"
    "<devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>"
)
OFF = "<domain><name>web1</name><os firmware='efi'><type>hvm</type></os><devices/></domain>"
BIOS = (
    "<domain><name>web1</name><os><type>hvm</type></os><devices><tpm><backend type='passthrough'/></tpm></devices>"
    "</domain>"
)
HAS = (
    f"<domainCapabilities><os><loader supported='yes'><value>{CODE}</value><enum name='type'><value>rom</value></enum>"
    "</loader></os><devices><tpm supported='yes'><enum name='model'><value>tpm-crb</value></enum>"
    "<enum name='backendModel'><value>passthrough</value><value>emulator</value></enum></tpm></devices>"
    "</domainCapabilities>"
)
BARE = (
    "<domainCapabilities><os><loader supported='yes'><enum name='type'><value>rom</value></enum></loader></os><devices>"
    "<tpm supported='yes'><enum name='model'><value>emulator</value></enum><enum name='backendModel'>"
    "<value>passthrough</value></enum></tpm></devices></domainCapabilities>"
)


def test_what_a_node_lacks_is_named():
    root = parse(RUNS.format(VARS))
    need = firmware.needs(root, firmware.loaders(parse(HAS)))
    assert need == {"loader": CODE, "tpm": True}
    assert firmware.lacking(need, parse(HAS)) == {}
    assert firmware.lacking(need, parse(BARE)) == {
        "firmware": f"it has no UEFI {CODE}",
        "tpm": "it has no emulated TPM (swtpm)",
    }
    assert firmware.lacking(need, parse("<domainCapabilities/>")).keys() == {"firmware", "tpm"}


def test_a_file_that_no_node_lists_is_not_asked_for():
    """Somebody has put it there by hand; whether another node has it can't be told."""
    need = firmware.needs(parse(RUNS.format(VARS)), [])
    assert need["loader"] is None and "firmware" not in firmware.lacking(need, parse(BARE))


@pytest.mark.parametrize(
    "text, path",
    [
        (RUNS.format(VARS), VARS),
        (OFF, VARS),
        (BIOS, None),
        (RUNS.format("/srv/shared/web1.fd"), None),
        (RUNS.format("/var/lib/libvirt/qemu/nvram/deeper/web1.fd"), None),
    ],
)
def test_only_libvirts_own_file_is_the_nodes(text, path):
    assert state_files.variables(parse(text)) == path
    assert firmware.needs(parse(BIOS), [])["tpm"] is False


TPM = "<domain><uuid>u1</uuid><devices><tpm><backend type='emulator'{}</backend></tpm></devices></domain>"


@pytest.mark.parametrize(
    "words, folder",
    [
        (" version='2.0'>", "/var/lib/libvirt/swtpm/u1/tpm2"),
        (">", "/var/lib/libvirt/swtpm/u1/tpm2"),
        (" version='1.2'>", "/var/lib/libvirt/swtpm/u1/tpm1.2"),
        ("><encryption secret='u2'/>", None),
        ("><source type='file' path='/srv/tpm'/>", None),
    ],
)
def test_keys_go_along_where_libvirt_put_them_and_no_secret_is_needed(words, folder):
    root = parse(TPM.format(words))
    assert state_files.keys(root) == folder
    assert state_files.kinds(root) == ["tpm"] and state_files.elsewhere(root) == ([] if folder else ["tpm"])


MOUNTS = [
    ("/dev/vda1 / ext4 rw 0 0", True),
    ("overlay / overlay rw 0 0\nproc /proc proc rw 0 0", True),
    ("/dev/vda1 / ext4 rw 0 0\nsan:/vms /var/lib/libvirt nfs4 rw 0 0", False),
    ("/dev/vda1 / ext4 rw 0 0\nsan:/vms /var/lib/libvirt/qemu/nvram what.ever rw 0 0", False),
    ("", False),
]


@pytest.mark.parametrize("mounts, local", MOUNTS)
def test_what_another_node_may_see_is_never_deleted(mounts, local):
    assert firmware.is_local(VARS, mounts) is local


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A machine with the folders of libvirt, which `mounts` says are its own."""
    for name in ("NVRAM", "TPM"):
        monkeypatch.setattr(state_files, name, tmp_path / name)
    keys = tmp_path / "TPM/u1/tpm2"
    keys.mkdir(parents=True)
    (tmp_path / "NVRAM").mkdir()
    files = [tmp_path / "NVRAM/web1_VARS.fd", keys / "tpm2-00.permall", keys / ".lock"]
    for path in files:
        path.write_bytes(b"secret")
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/vda1 / ext4 rw 0 0\n", encoding="utf-8")
    root = parse(OFF.replace("<os", "<uuid>u1</uuid><os").replace("<devices/>", RUNS[RUNS.index("<devices>") : -9]))
    return SimpleNamespace(root=root, mounts=mounts, files=[str(path) for path in files])


def test_what_stays_behind_is_what_nobody_takes_along(node):
    variables, keys, _lock = node.files
    assert firmware.kept(node.root, running=False, mounts=node.mounts) == [variables, keys]
    assert firmware.kept(node.root, running=True, mounts=node.mounts) == [variables]
    assert firmware.unmoved(node.root, node.mounts) == []


def test_a_machine_that_has_never_run_has_nothing_of_it(node):
    for path in node.files:
        Path(path).unlink()
    Path(node.files[1]).parent.rmdir()
    assert firmware.kept(node.root, running=False, mounts=node.mounts) == []


def test_what_other_nodes_may_see_is_left_alone(node):
    node.mounts.write_text("san:/ / nfs4 rw 0 0\n", encoding="utf-8")
    assert firmware.kept(node.root, running=False, mounts=node.mounts) == []
    assert firmware.unmoved(node.root, node.mounts) == ["nvram", "tpm"]


KEYS = "/var/lib/libvirt/swtpm/u1/tpm2/tpm2-00.permall"
OWNER = TPM.format(" version='2.0'>")


@pytest.mark.parametrize(
    "here, gone",
    [([RUNS.format(VARS)], [KEYS]), ([OFF], [KEYS]), ([BIOS], [VARS, KEYS]), ([], [VARS, KEYS]), ([OWNER], [VARS])],
)
def test_what_a_vm_of_the_node_has_stays(here, gone):
    removed = []
    domains = [SimpleNamespace(XMLDesc=lambda flags, text=text: text) for text in here]
    end = ends.End(SimpleNamespace(name="hv1", connection=SimpleNamespace(listAllDomains=lambda: domains)))
    end.volumes = SimpleNamespace(forget=removed.extend)
    end.forget([VARS, KEYS])
    assert removed == gone
