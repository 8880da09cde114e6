# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UEFI and TPM of a VM that moves: what it needs, what a node lacks, which file of variables may go."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

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
    assert need == {"loader": CODE, "tpm": True, "variables": VARS}
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
    assert firmware.variables(parse(text)) == path
    assert firmware.needs(parse(BIOS), [])["tpm"] is False


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


def test_the_file_goes_and_a_second_time_is_no_error(tmp_path):
    path, mounts = tmp_path / "web1_VARS.fd", tmp_path / "mounts"
    path.write_bytes(b"keys")
    mounts.write_text("san:/ / nfs4 rw 0 0\n", encoding="utf-8")
    firmware.remove_variables(str(path), mounts)
    assert path.exists()
    mounts.write_text("/dev/vda1 / ext4 rw 0 0\n", encoding="utf-8")
    for _time in range(2):
        firmware.remove_variables(str(path), mounts)
        assert not path.exists()


@pytest.mark.parametrize("here, stays", [([RUNS.format(VARS)], True), ([OFF], True), ([BIOS], False), ([], False)])
def test_what_a_vm_of_the_node_has_stays(monkeypatch, here, stays):
    removed = []
    monkeypatch.setattr(firmware, "remove_variables", lambda path, mounts: removed.append(path))
    domains = [SimpleNamespace(XMLDesc=lambda flags, text=text: text) for text in here]
    connection = SimpleNamespace(listAllDomains=lambda: domains)
    ends.End(SimpleNamespace(name="hv1", connection=connection)).forget_variables(VARS)
    assert removed == ([] if stays else [VARS])
