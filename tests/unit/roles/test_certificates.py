# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose certificates role hypervisor replaces, on nodes that are folders; the certificates are real ones."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.exceptions import InvalidSignature
from cryptography.x509 import load_pem_x509_certificate

from ansible_collections.drover.kvm.tests.unit.playbook_run import COLLECTIONS, ROOT, run

CRYPTO = [
    path
    for path in os.environ.get("ANSIBLE_COLLECTIONS_PATH", "").split(":")
    if Path(path, "ansible_collections/community/crypto").is_dir()
]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CRYPTO, reason="not installed: collection community.crypto")]
# What it does with the lines of tmpfiles.d(5) that the role writes: a link is made only where nothing is.
TMPFILES = f"""#!{sys.executable}
import os, sys
for line in open(sys.argv[-1]):
    words = line.split()
    if words[:1] == ["d"]:
        os.makedirs(words[1], exist_ok=True)
    elif words[:1] == ["L"] and not os.path.lexists(words[1]):
        os.symlink(words[-1], words[1])
"""
# What somebody has made by hand, as the manual of libvirt says.
OTHER = """-----BEGIN CERTIFICATE-----
MIIBljCCAT2gAwIBAgIUJiHQyaDpcJEGMvoGfNE4a/usHaowCgYIKoZIzj0EAwIw
IDEQMA4GA1UECgwHRXhhbXBsZTEMMAoGA1UEAwwDaHYxMCAXDTI2MTEyNDAwMTYx
MVoYDzIxMjYxMDMxMDAxNjExWjAgMRAwDgYDVQQKDAdFeGFtcGxlMQwwCgYDVQQD
DANodjEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATrhkN4GKZpoNz2xJoTpASW
ORYZM/2NsWKZgS7zoxtdhsY/3RrMXPVTjkIRB8a7uNjPtDLaiENBm3lUBGzwi5t7
o1MwUTAdBgNVHQ4EFgQUg14ad9lMU0AS7ZSty4lV9FBdaxUwHwYDVR0jBBgwFoAU
g14ad9lMU0AS7ZSty4lV9FBdaxUwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQD
AgNHADBEAiBBxFExYQPq7/FFyoFF0a+2xSCTzo4xZxNxETbIxGn6TAIgLZpzx6+c
LRRgIFLDdpjojCbTKjd7+cOQpu3+scocNK4=
-----END CERTIFICATE-----
"""
CA, CERTIFICATE, QEMU = "CA/cacert.pem", "libvirt/servercert.pem", "qemu/server-cert.pem"
LINKS = ("libvirt/clientcert.pem", "libvirt/private/clientkey.pem")
QEMU_LINKS = ("qemu/ca-cert.pem", "qemu/client-cert.pem", "qemu/client-key.pem")


class Nodes:
    """The role's tasks of certificates, with a folder for each node's /etc and one for each controller's CA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "roles/hypervisor", folder / "roles/hypervisor")
        for path in (folder / "roles/hypervisor").glob("[dtv]*/*.yml"):
            moved = _moved(yaml.safe_load(path.read_text(encoding="utf-8")))
            path.write_text(json.dumps(moved), encoding="utf-8")
        template = folder / "roles/hypervisor/templates/tmpfiles.conf.j2"
        template.write_text(
            template.read_text(encoding="utf-8").replace(" /etc/", " {{ root }}/etc/"), encoding="utf-8"
        )
        (folder / "systemd-tmpfiles").write_text(TMPFILES, encoding="utf-8")
        (folder / "systemd-tmpfiles").chmod(0o700)
        for name in ("hv1", "hv2"):
            (folder / name / "etc/tmpfiles.d").mkdir(parents=True)

    def path(self, node: str, name: str) -> Path:
        return self.folder / node / "etc/pki" / name

    def issued(self, node: str, name: str) -> bool:
        """Whether a node's certificate is signed by the CA that the node has."""
        loaded = [load_pem_x509_certificate(self.path(node, one).read_bytes()) for one in (name, CA)]
        try:
            loaded[0].verify_directly_issued_by(loaded[1])
        except InvalidSignature:
            return False
        return True

    def state(self) -> dict[str, str]:
        """All files and links of the nodes and controllers."""
        found = [path for path in self.folder.rglob("*") if path.is_file() or path.is_symlink()]
        kept = [path for path in found if {"hv1", "hv2", "one", "two"} & {*path.relative_to(self.folder).parts}]
        return {str(path): os.readlink(path) if path.is_symlink() else path.read_text() for path in kept}

    def play(self, controller: str, *words: str, **variables: Any) -> tuple[int, str]:
        """A run from that controller; its exit status and output as one line."""
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts = {name: {**local, "root": str(self.folder / name)} for name in ("hv1", "hv2")}
        known = {
            "hypervisor_ca_directory": str(self.folder / controller),
            "hypervisor_qemu_group": str(os.getegid()),
            "ansible_facts": {"nodename": "{{ inventory_hostname }}"},
            **variables,
        }
        include = [
            {"ansible.builtin.include_role": {"name": "hypervisor", "tasks_from": name}}
            for name in ("present", "certificates")
        ]
        play = {"hosts": "hypervisors", "gather_facts": False, "vars": known, "tasks": include}
        (self.folder / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
        inventory = {"all": {"hosts": {"localhost": local}, "children": {"hypervisors": {"hosts": hosts}}}}
        (self.folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
        more = {
            "ANSIBLE_COLLECTIONS_PATH": ":".join([str(COLLECTIONS), *CRYPTO]),
            "ANSIBLE_PIPELINING": "1",
            "PATH": f"{self.folder}:{os.environ['PATH']}",
        }
        return run(self.folder, "-i", str(self.folder / "hosts.json"), str(self.folder / "play.yml"), *words, more=more)


def _moved(value: Any) -> Any:
    """What a file of the role says, with paths in the node's folder, and owned by who runs the tests."""
    if isinstance(value, dict):
        mine = {name: str(os.geteuid()) for name in ("owner", "group") if value.get(name) == "root"}
        return {key: _moved(one) for key, one in {**value, **mine}.items()}
    if isinstance(value, list):
        return [_moved(one) for one in value]
    return "{{ root }}" + value if isinstance(value, str) and value.startswith("/etc/") else value


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two nodes after the first run, and a copy of their folder."""
    found = Nodes(tmp_path_factory.mktemp("nodes"))
    code, said = found.play("one")
    assert code == 0, said
    return found, shutil.copytree(found.folder, tmp_path_factory.mktemp("copy") / "nodes", symlinks=True)


@pytest.fixture
def nodes(prepared):
    """They again, whatever was done to them."""
    found, copy = prepared
    shutil.rmtree(found.folder)
    shutil.copytree(copy, found.folder, symlinks=True)
    return found


def test_a_new_site_is_foretold(tmp_path):
    code, said = Nodes(tmp_path).play("one", "--check", "--limit", "hv1")
    assert code == 0 and "The node would get certificates of the new CA." in said, said


def test_a_second_run_changes_nothing(nodes):
    before = nodes.state()
    code, said = nodes.play("one", "--limit", "hv1")
    assert code == 0 and " changed=0 " in said and nodes.state() == before, said
    assert all(nodes.issued(node, name) for node in ("hv1", "hv2") for name in (CERTIFICATE, QEMU))


@pytest.mark.parametrize("mode", [[], ["--check"]])
def test_a_controller_without_the_ca_makes_no_second_one(nodes, mode):
    """Not for a new node either, while another one of the play has the first CA's."""
    shutil.rmtree(nodes.path("hv1", ""))
    before = nodes.state()
    code, said = nodes.play("two", *mode)
    assert code != 0 and nodes.state() == before, said
    assert f"hv2 has a CA already ({nodes.path('hv2', CA)}), and localhost has none in {nodes.folder}/two." in said
    assert "TASK [hypervisor : Declare" not in said, "hv1 was gone on with"


def test_a_node_that_was_prepared_halfway_is_finished_by_the_same_controller(nodes):
    for name in (CA, QEMU):
        nodes.path("hv1", name).unlink()
    # An address in another form than that of certificates, too.
    code, said = nodes.play("one", "--limit", "hv1", hypervisor_migration_address="FD00:5:0::0011")
    assert code == 0 and nodes.issued("hv1", CERTIFICATE) and nodes.issued("hv1", QEMU), said
    code, said = nodes.play("one", "--limit", "hv1", hypervisor_migration_address="FD00:5:0::0011")
    assert code == 0 and " changed=0 " in said, said


def test_a_new_ca_of_the_same_name_is_made_when_the_old_one_is_moved_away(nodes):
    nodes.path("hv1", CA).unlink()
    code, said = nodes.play("two", "--check", "--limit", "hv1")
    assert code == 0 and "The node would get certificates of the new CA." in said, said
    code, said = nodes.play("two", "--limit", "hv1")
    assert code == 0 and nodes.path("hv1", CA).read_text() == (nodes.folder / "two/ca.pem").read_text(), said
    assert nodes.issued("hv1", CERTIFICATE) and nodes.issued("hv1", QEMU), said
    # The whole cluster is not gone on with for the one node that has another CA now.
    before = nodes.state()
    code, said = nodes.play("one")
    assert code != 0 and nodes.state() == before and "TASK [hypervisor : Declare" not in said, said
    assert f"{CA} of hv1 is not of this cluster's CA ({nodes.folder}/one of localhost) and would be replaced" in said, (
        said
    )


@pytest.mark.parametrize(
    "files, controller",
    [
        ((*LINKS, *QEMU_LINKS), "one"),
        ((CERTIFICATE, QEMU), "one"),
        ((CERTIFICATE,), "two"),
        ((CA,), "one"),
    ],
)
def test_tls_of_others_is_neither_used_nor_replaced(nodes, files, controller):
    """On a node that is new to the cluster, and where hv2 would come to no harm; each file is named."""
    shutil.rmtree(nodes.path("hv1", ""))
    if controller == "two":
        shutil.rmtree(nodes.path("hv2", ""))
    for name in files:
        nodes.path("hv1", name).parent.mkdir(parents=True, exist_ok=True)
        nodes.path("hv1", name).write_text(OTHER)
    before = nodes.state()
    code, said = nodes.play(controller)
    assert code != 0 and nodes.state() == before and "TASK [hypervisor : Declare" not in said, said
    assert all(str(nodes.path("hv1", name)) in said for name in files), said
    words = ("of hv1: not the links", "move them away") if LINKS[0] in files else ("of hv1 is not ", "move it away")
    assert all(word in said for word in words), said


@pytest.mark.parametrize("name, content", [(CERTIFICATE, ""), (CA, "what is no certificate")])
def test_a_file_that_is_no_certificate_is_named(nodes, name, content):
    nodes.path("hv1", name).write_text(content)
    code, said = nodes.play("one", "--check")
    assert code != 0 and f"{nodes.path('hv1', name)} of hv1 is not of this cluster's CA" in said, said


def test_a_link_to_somewhere_else_is_named(nodes):
    nodes.path("hv1", LINKS[0]).unlink()
    nodes.path("hv1", LINKS[0]).symlink_to("/etc/ssl/own.pem")
    code, said = nodes.play("one", "--check")
    assert code != 0 and f"{LINKS[0]} of hv1: not the links that this role makes" in said, said


def test_the_ca_of_a_vault_is_used_and_another_one_there_refused(nodes):
    key, certificate = ((nodes.folder / "one" / name).read_text() for name in ("ca.key", "ca.pem"))
    vault = {"hypervisor_ca_key": key, "hypervisor_ca_certificate": certificate.strip()}
    nodes.path("hv1", QEMU).unlink()
    code, said = nodes.play("two", "--limit", "hv1", **vault)
    assert code == 0 and nodes.issued("hv1", QEMU) and not (nodes.folder / "two").exists(), said
    code, said = nodes.play("two", "--check", **{**vault, "hypervisor_ca_certificate": OTHER})
    assert code != 0 and f"{CA} of hv2 is not of this cluster's CA (hypervisor_ca_certificate) and would be" in said, (
        said
    )
