# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates on real files, fetched from a real server, and disks that are cloned from them with real qemu-img."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import json
import os
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _download, _resource
from ansible_collections.drover.kvm.plugins.module_utils._cluster import fixed
from ansible_collections.drover.kvm.plugins.module_utils._disks import making, template
from ansible_collections.drover.kvm.plugins.module_utils._domain import chains, templates
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import domain_facts
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Invalid, NotFound, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_uuid
from ansible_collections.drover.kvm.plugins.module_utils._xml import find, parse, text_of
from ansible_collections.drover.kvm.plugins.modules import image
from ansible_collections.drover.kvm.tests.unit.images import qemu_img
from ansible_collections.drover.kvm.tests.unit.plugins.modules import test_vm

pytest.importorskip("libvirt")
pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
lab = test_vm.lab
MIB = 2**20
BASE: dict[str, Any] = {"name": "web1", "memory": "64MiB", "vcpus": 1}


def sha(path: Path, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, path.read_bytes()).hexdigest()}"


class Site:
    """A folder of templates, what is at the vendor's, and the module."""

    def __init__(self, folder: Path, capsys: Any) -> None:
        self.folder, self.capsys = folder, capsys
        self.vendor, self.path = folder / "vendor", folder / "templates" / "debian.qcow2"
        for place in (self.vendor, self.path.parent):
            place.mkdir()
        (folder / "content").write_bytes(b"boot" * 1000 + bytes(3 * MIB) + b"data" * 1000)
        self.source = self.vendor / "debian.qcow2"
        qemu_img("convert", "-f", "raw", "-O", "qcow2", folder / "content", self.source)

    def run(self, **args: Any) -> dict[str, Any]:
        with patch_module_args(args), pytest.raises(SystemExit):
            image.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    def make(self, **args: Any) -> dict[str, Any]:
        given = {"path": str(self.path), "source": str(self.source), "checksum": sha(self.source), "format": "qcow2"}
        return self.run(**{**given, **args})

    def both(self, **args: Any) -> dict[str, Any]:
        """The real run; check mode said the same and changed nothing, and a second run does nothing."""
        before = self.names()
        predicted = self.make(**args, _ansible_check_mode=True, _ansible_diff=True)
        assert self.names() == before
        real = self.make(**args, _ansible_diff=True)
        assert not real.get("failed"), real["msg"]
        for key in ("changed", "actions", "diff"):
            assert predicted[key] == real[key]
        assert self.make(**args)["actions"] == []
        return real

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path.parent))


@pytest.fixture
def site(tmp_path, capsys):
    (tmp_path / "site").mkdir()
    return Site(tmp_path / "site", capsys)


@pytest.fixture
def no_vms(monkeypatch):
    """A machine without libvirt's library."""

    def connect():
        raise NotFound("the Python library of libvirt is missing")

    monkeypatch.setattr(templates, "connect", connect)


@pytest.fixture
def vendor(site):
    """The vendor's server; its log."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            asked.append(self.path)

    handler = partial(Handler, directory=str(site.vendor))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_template_is_fetched_once(site, vendor, no_vms):
    url, asked = vendor
    result = site.both(source=f"{url}/debian.qcow2")
    assert result["actions"] == [f"make {site.path} (qcow2) from {url}/debian.qcow2"]
    size = os.path.getsize(site.folder / "content")
    made = {"path": str(site.path), "format": "qcow2", "size": size + -size % 512, "checksum": sha(site.source)}
    assert result["image"] == {**made, "intact": True}
    assert asked == ["/debian.qcow2"] and site.names() == ["debian.qcow2"]
    assert site.path.stat().st_mode & 0o777 == 0o444 and sha(site.path) == sha(site.source)
    gone = site.run(path=str(site.path), state="absent")
    assert gone["actions"] == [f"delete {site.path}"] and gone["image"] is None and site.names() == []
    assert not site.run(path=str(site.path), state="absent")["changed"]


def test_the_checksum_comes_from_a_list(site, vendor, no_vms):
    url, asked = vendor
    lines = [sha(site.source, "sha512")[7:] + "  ./debian.qcow2", "0" * 128 + "  other.qcow2", "# words"]
    (site.vendor / "SHA512SUMS").write_text("\n".join(lines), encoding="utf-8")
    given = {"source": f"{url}/debian.qcow2", "checksum": f"sha512:{url}/SHA512SUMS"}
    assert site.both(**given)["image"]["checksum"] == sha(site.source, "sha512")
    assert asked.count("/debian.qcow2") == 1
    (site.vendor / "SHA512SUMS").write_text("\n".join(lines[1:]), encoding="utf-8")
    assert "has no sha512 of debian.qcow2" in site.make(**given)["msg"]
    bsd = f"SHA256 (debian.qcow2) = {sha(site.source)[7:].upper()}"
    (site.vendor / "CHECKSUM").write_text(bsd, encoding="utf-8")
    found = _download.expected(f"sha256:{url}/CHECKSUM", f"{url}/debian.qcow2", 10)
    assert found == sha(site.source)
    (site.vendor / "CHECKSUM").write_text(f"{bsd}\n{'0' * 64} *debian.qcow2", encoding="utf-8")
    with pytest.raises(Invalid, match="more than one"):
        _download.expected(f"sha256:{url}/CHECKSUM", f"{url}/debian.qcow2", 10)


def test_what_is_wrong_leaves_nothing(site, vendor, no_vms):
    url, _asked = vendor
    overlay = site.vendor / "overlay.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", site.source, overlay)
    outside = site.vendor / "outside.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={site.vendor}/data,data_file_raw=on", outside, "1M")
    for args, words in (
        ({"checksum": "sha256:" + "0" * 64}, "has the checksum"),
        ({"source": f"{url}/none.qcow2"}, "the server says 404"),
        ({"source": "http://127.0.0.1:9/a"}, "can't be read"),
        ({"source": f"{site.vendor}/none"}, "No such file"),
        ({"format": "raw"}, "is qcow2, not raw"),
        ({"source": f"{site.folder}/content", "checksum": sha(site.folder / "content")}, "is not qcow2"),
        ({"source": str(overlay), "checksum": sha(overlay)}, "is not whole: it is based on"),
        ({"source": str(outside), "checksum": sha(outside)}, "is not whole: it is based on"),
        ({"path": f"{site.folder}/none/a.qcow2"}, "does not exist"),
        ({"path": "/etc/a.qcow2"}, "belongs to the operating system"),
        ({"source": "ftp://host/a"}, "is no source"),
        ({"source": "https://user:pw-7@host/a"}, "without a password"),
        ({"checksum": "md5:" + "0" * 32}, "is no checksum"),
        ({"checksum": "sha256:00"}, "64 hexadecimal digits"),
        ({"checksum": None}, "checksum is missing"),
    ):
        result = site.make(**args)
        assert result["failed"] and words in result["msg"] and not result["changed"], (args, result["msg"])
        assert site.names() == [] and "pw-7" not in result["msg"]


def test_an_image_is_converted(site, no_vms):
    path = site.path.with_suffix(".raw")
    result = site.both(path=str(path), format="raw", source_format="qcow2")
    assert result["image"]["checksum"] == sha(site.source) and site.names() == ["debian.raw"]
    content = (site.folder / "content").read_bytes()
    assert path.read_bytes().rstrip(b"\0") == content and path.stat().st_blocks * 512 < MIB
    assert site.both(path=str(path), format="raw", source_format="qcow2", verify=True)["actions"] == []


def test_a_file_of_others_stays(site, no_vms):
    site.path.write_bytes(b"mine")
    for args in ({}, {"state": "absent"}):
        assert "was not made by this module" in site.make(**args)["msg"]
    assert site.path.read_bytes() == b"mine"


def test_what_a_killed_run_left_is_used_up(site, no_vms):
    leftovers = [Path(part) for part in making.parts(str(site.path))]
    for part in leftovers:
        part.write_bytes(b"x" * 10 * MIB)
    with leftovers[0].open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "another run makes this image" in site.make()["msg"]
    assert site.both()["changed"] and site.names() == ["debian.qcow2"]
    leftovers[1].write_bytes(b"x")
    site.run(path=str(site.path), state="absent")
    leftovers[0].write_bytes(b"x")
    gone = site.run(path=str(site.path), state="absent")
    assert gone["actions"] == [f"delete {leftovers[0]}, which a run left"] and site.names() == []


@pytest.mark.parametrize("part", [0, 1], ids=["as it was fetched", "converted"])
def test_a_second_name_that_a_killed_run_left_is_not_written_to(site, no_vms, part):
    """It was killed between naming the template and taking its first name away."""
    site.make()
    made = sha(site.path)
    os.link(site.path, making.parts(str(site.path))[part])
    new = site.folder / "new"
    new.write_bytes(b"new" * MIB)
    right = sha(new) if part == 1 else f"sha256:{64 * '0'}"
    other = {"source_format": "raw", "source": str(new), "checksum": right}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "_place", Mock(side_effect=Failed("the new one is not named")))
        words = ("has the checksum", "the new one is not named")[part]
        assert words in site.make(**other)["msg"]
    assert sha(site.path) == made and site.names() == ["debian.qcow2"]


def test_content_that_changed_is_seen(site, no_vms):
    site.make()
    os.utime(site.path, ns=(1, 1))
    assert site.both()["actions"] == [f"note the new time of {site.path}, whose content is the same"]
    status = site.path.stat()
    site.path.chmod(0o644)
    with site.path.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"rot")
    os.utime(site.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert site.make()["actions"] == []
    assert site.both(verify=True)["actions"] == [f"replace {site.path} (qcow2) from {site.source}"]
    assert sha(site.path) == sha(site.source)


def test_a_full_disk_and_one_without_attributes(site, no_vms, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "setxattr", full)
        assert "can't be marked as a template" in site.make()["msg"]
    assert site.names() == []


def disk(site: Site, **options: Any) -> dict[str, Any]:
    return {"type": "file", "format": "qcow2", "source": str(site.path), **options}


@pytest.fixture
def cloned(site, lab, monkeypatch):
    """A template, and the VMs of this node."""
    monkeypatch.setattr(templates, "connect", test_vm.vm.connect)
    assert site.make()["changed"]
    return lab


@pytest.mark.slow
def test_twenty_linked_clones_and_their_template(site, cloned, tmp_path):
    vms = [{"name": f"web{number}"} for number in range(20)]
    result = cloned.both(vms=vms, memory="64MiB", vcpus=1, disks=[disk(site, size="8MiB")], state="running")
    path = tmp_path / "drover-web7-0.qcow2"
    made = f"web7: create {path} (qcow2, 8MiB, a linked clone of {site.path})"
    assert made in result["actions"] and len(result["actions"]) == 60
    seven = next(one for one in result["results"] if one["name"] == "web7")["vm"]
    assert seven["disks"][0]["backing"] == str(site.path) and seven["disks"][0]["size"] == 8 * MIB
    facts = json.loads(qemu_img("info", "-U", "--output=json", path))
    assert (facts["backing-filename"], facts["backing-filename-format"]) == (str(site.path), "qcow2")
    xml = "".join(cloned.node.domain("web7").xml.split())
    chain = f"<backingStoretype='file'><formattype='qcow2'/><sourcefile='{site.path}'/><backingStore/></backingStore>"
    assert chain in xml
    assert len(template.clones(str(site.path))) == 20 and sha(site.path) == sha(site.source)
    other = site.folder / "new.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", other, "1M")
    for args in ({"state": "absent"}, {"source": str(other), "checksum": sha(other)}):
        refused = site.make(**args)
        assert refused["failed"] and "VM web7" in refused["msg"] and str(path) in refused["msg"]
    assert sha(site.path) == sha(site.source)
    gone = cloned.both(vms=vms, state="absent", force=True, remove_disks=True)
    assert f"web7: delete {path}" in gone["actions"] and site.path.exists()
    assert site.run(path=str(site.path), state="absent")["changed"] and not site.path.exists()


def test_a_clone_whose_vm_is_gone_still_keeps_its_template(site, cloned, tmp_path):
    cloned.run(**BASE, disks=[disk(site)])
    kept = cloned.both(name="web1", state="absent")
    path = str(tmp_path / "drover-web1-0.qcow2")
    assert kept["kept"] == [path] and os.path.exists(path)
    refused = site.run(path=str(site.path), state="absent")
    assert path in refused["msg"] and "VM" not in refused["msg"].split("remove these")[0]
    again = cloned.both(**BASE, disks=[disk(site)])
    assert again["actions"] == ["define web1: 1 vCPUs, 64MiB, 1 disks, 0 NICs"]
    assert "<backingStore type='file'>" in cloned.node.domain("web1").xml
    cloned.run(name="web1", state="absent")
    hidden = tmp_path / "not-mounted"
    assert json.loads(os.getxattr(site.path, template.FOLDERS)) == [str(tmp_path)]
    os.setxattr(site.path, template.FOLDERS, json.dumps([str(hidden)]).encode())
    assert "which is not there; mount it" in site.run(path=str(site.path), state="absent")["msg"]


def test_a_template_on_shared_storage_stays_for_a_clone_on_a_disk_of_another_node(site, cloned, no_vms, monkeypatch):
    cloned.run(**BASE, disks=[disk(site)])
    # On this node there is nothing to be seen of it.
    (site.folder.parent / "drover-web1-0.qcow2").rename(site.folder / "on-hv2")
    other = site.folder / "new.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", other, "1M")
    changes = ({"state": "absent"}, {"source": str(other), "checksum": sha(other)})
    told: dict[str, Any] = {}
    monkeypatch.setattr(templates, "ask_peers", lambda call: {name: ask(call) for name, ask in told.items()})
    monkeypatch.setattr(templates, "shared_mounts", lambda: [str(site.folder)])
    for answer, words in (
        (lambda call: call(cloned.node), "VM web1 on hv2"),
        (lambda call: Unreachable("hv2 is silent"), "hv2 gave no answer"),
    ):
        told["hv2"] = answer
        for args in changes:
            refused = site.make(**args)
            assert sha(site.path) == sha(site.source) and refused["failed"] and words in refused["msg"]
    monkeypatch.setattr(templates, "shared_mounts", lambda: ["/mnt/other"])
    assert site.make(**changes[1])["changed"], "each node has a template of its own at this path"


def test_a_full_copy_stands_alone(site, cloned, tmp_path):
    for number, kind in enumerate(("raw", "qcow2")):
        one = disk(site, format=kind, clone="full", size="16MiB")
        result = cloned.both(**{**BASE, "name": f"web{number}"}, disks=[one])
        path = tmp_path / f"drover-web{number}-0.{kind}"
        assert f"create {path} ({kind}, 16MiB, a full clone of {site.path})" in result["actions"]
        facts = json.loads(qemu_img("info", "-f", kind, "--output=json", path))
        assert facts["virtual-size"] == 16 * MIB and "backing-filename" not in facts
        assert "identical" in qemu_img("compare", "-f", kind, "-F", "qcow2", path, site.path)
        assert path.stat().st_mode & 0o777 == 0o600 and "backingStore" not in cloned.node.domain(f"web{number}").xml
    assert site.run(path=str(site.path), state="absent")["changed"]


def test_a_copy_that_was_killed_is_made_again(site, cloned, tmp_path):
    (tmp_path / ".drover-web1-0.raw.drover-part").write_bytes(b"half")
    cloned.both(**BASE, disks=[disk(site, format="raw")])
    assert not (tmp_path / ".drover-web1-0.raw.drover-part").exists()
    assert (tmp_path / "drover-web1-0.raw").read_bytes()[:4] == b"boot"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"source": "/srv/none.qcow2"}, "there is no template /srv/none.qcow2"),
        ({"source": "../x"}, "is not the path of a file"),
        ({"size": "1MiB"}, "bytes, more than"),
        ({"clone": "linked", "format": "raw"}, "has the format qcow2"),
        ({"source": None, "size": "8MiB", "path": "{template}"}, "is a template, which no VM may write to"),
        ({"source": "{other}"}, "is no template; make one of it"),
    ],
)
def test_what_can_not_be_cloned(site, cloned, tmp_path, options, words):
    texts = {"template": site.path, "other": site.source}
    options = {name: text.format(**texts) if isinstance(text, str) else text for name, text in options.items()}
    result = cloned.run(**BASE, disks=[disk(site, **options)])
    assert result["failed"] and words in result["msg"] and cloned.node.domains() == {}
    assert not list(tmp_path.glob("drover-*"))


def test_clone_is_for_files(site, cloned):
    result = cloned.run(**BASE, disks=[{**test_vm.SAN, "clone": "full"}])
    assert "clone is for disks of type file" in result["msg"]


def test_a_template_that_changed_is_not_cloned(site, cloned):
    os.utime(site.path, ns=(1, 1))
    assert "has changed since it was made" in cloned.run(**BASE, disks=[disk(site)])["msg"]


def test_a_template_that_is_being_replaced_is_not_cloned(site, cloned, tmp_path):
    with template.held(str(site.path), alone=True):
        result = cloned.run(**BASE, disks=[disk(site)])
    assert "just now" in result["msg"] and not list(tmp_path.glob("drover-*.qcow2"))
    with template.held(str(site.path), alone=False):
        assert "just now" in site.run(path=str(site.path), state="absent")["msg"]
        assert cloned.run(**BASE, disks=[disk(site)])["changed"]


def test_a_copy_that_would_not_fit(site, cloned, monkeypatch):
    monkeypatch.setattr(template, "space", lambda path: 2**60)
    assert "MiB are free" in cloned.run(**BASE, disks=[disk(site, clone="full")])["msg"]
    assert cloned.run(**BASE, disks=[disk(site)])["changed"]
    assert "MiB are free" in cloned.run(**BASE, disks=[disk(site, clone="full")])["msg"]


def test_a_clone_of_a_vm_that_is_off_is_flattened(site, cloned, tmp_path):
    cloned.run(**BASE, disks=[disk(site)])
    path = tmp_path / "drover-web1-0.qcow2"
    result = cloned.both(name="web1", disks=[disk(site, clone="full")])
    assert result["actions"][0] == f"flatten {path}, which is based on {site.path}"
    assert result["diff"]["before"]["disks"][0]["backing"] == str(site.path)
    assert result["vm"]["disks"][0]["backing"] is None and template.backing_of(str(path)) is None
    assert "<backingStore/>" in cloned.node.domain("web1").xml and "debian" not in cloned.node.domain("web1").xml
    assert qemu_img("compare", "-f", "qcow2", "-F", "qcow2", path, site.path).startswith("Images are identical")
    assert cloned.run(name="web1", disks=[disk(site)])["actions"] == []
    assert site.run(path=str(site.path), state="absent")["changed"]


def test_a_clone_with_a_snapshot_is_not_flattened(site, cloned, tmp_path):
    cloned.run(**BASE, disks=[disk(site)])
    cloned.node.create_snapshot("web1", "<domainsnapshot><name>s1</name></domainsnapshot>", False, False)
    result = cloned.run(name="web1", disks=[disk(site, clone="full")])
    assert result["failed"] and "has snapshots, which hold only what differs from its base" in result["msg"]
    assert template.backing_of(str(tmp_path / "drover-web1-0.qcow2"))


def test_flattening_that_was_killed_before_the_definition_was_written(site, cloned, tmp_path):
    cloned.run(**BASE, disks=[disk(site)])
    template.flatten(str(tmp_path / "drover-web1-0.qcow2"), MIB)
    assert "debian" in cloned.node.domain("web1").xml
    assert "flatten" in cloned.both(name="web1", disks=[disk(site, clone="full")])["actions"][0]
    assert "debian" not in cloned.node.domain("web1").xml


class Qemu:
    """A running VM's QEMU as libvirt shows it: a pull takes some looks, or breaks off."""

    name = "hv1"

    def __init__(self, node, path, base, breaks=False):
        self.node, self.path, self.base, self.breaks = node, path, base, breaks
        self.left: int | None = None
        self.started = 0

    def domain(self, name):
        domain = self.node.domain(name)
        xml = domain.xml
        if self.left == 0 and not self.breaks:
            root = parse(xml)
            vda = chains.disk_of(root, "vda")
            vda.remove(find(vda, "backingStore"))
            xml = text_of(root)
        return replace(domain, live_xml=xml, id=1)

    def block_job(self, name, target):
        if not self.left:
            return {}
        self.left -= 1
        return {"cur": 10 - self.left, "end": 10}

    def pull(self, name, target):
        self.started, self.left = self.started + 1, 3


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_clone_is_flattened_as_its_vm_runs(site, cloned, tmp_path, goes_on):
    cloned.run(**BASE, disks=[disk(site)], state="running")
    path = str(tmp_path / "drover-web1-0.qcow2")
    qemu = Qemu(cloned.node, path, site.path)
    qemu.left = 5 if goes_on else None
    tree = parse(cloned.node.domain("web1").xml)
    shown = {"path": path, "target": "vda", "size": MIB, "format": "qcow2", "type": "file"}
    (step,) = chains.flatten(qemu, tree, parse(cloned.node.domain("web1").live_xml), [shown], {"vda"})
    assert step.text == f"flatten {path}, which is based on {site.path}" and "debian" not in text_of(tree)
    step.run()
    assert qemu.started == (0 if goes_on else 1) and step.done() is True


def test_a_pull_that_breaks_off_is_told(site, cloned, tmp_path, monkeypatch):
    monkeypatch.setattr(_resource, "POLL_MOST", 0.01)
    cloned.run(**BASE, disks=[disk(site)], state="running")
    shown = {"path": str(tmp_path / "drover-web1-0.qcow2"), "target": "vda", "size": MIB, "format": "qcow2"}
    one = chains.Flattening(Qemu(cloned.node, shown["path"], site.path, breaks=True), "web1", shown, live=True)
    with pytest.raises(Failed, match="ended before its time"):
        one.step("base").run()


def test_removing_a_vm_leaves_media_and_files_of_others_and_says_so(site, cloned, tmp_path):
    """What other tools lost: the ISO in the drive, a disk that somebody else made, a disk outside any pool."""
    iso, foreign = tmp_path / "installer.iso", tmp_path / "data.raw"
    iso.write_bytes(bytes(MIB))
    foreign.write_bytes(bytes(MIB))
    disks = [
        disk(site),
        {"type": "file", "format": "raw", "path": str(foreign)},
        {"type": "file", "device": "cdrom", "path": str(iso)},
    ]
    cloned.run(**BASE, disks=disks)
    own = tmp_path / "drover-web1-0.qcow2"
    result = cloned.both(name="web1", state="absent", remove_disks=True)
    assert result["actions"] == ["undefine web1", f"delete {own}"]
    assert result["kept"] == [str(foreign), str(iso)]
    assert iso.exists() and foreign.exists() and site.path.exists() and not own.exists()


def test_the_definition_goes_before_the_disk(site, cloned, tmp_path, monkeypatch):
    """Other tools delete the disk first, and then libvirt keeps the domain for its snapshot or NVRAM."""
    cloned.run(**BASE, disks=[disk(site)])
    own = tmp_path / "drover-web1-0.qcow2"

    def fails(*_args, **_options):
        raise Failed("cannot undefine domain with nvram")

    with monkeypatch.context() as patch:
        patch.setattr(cloned.node, "undefine", fails)
        assert "nvram" in cloned.run(name="web1", state="absent", remove_disks=True)["msg"]
    assert own.exists() and "web1" in cloned.node.domains()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fails)
        patch.setattr(Path, "unlink", fails)
        assert cloned.run(name="web1", state="absent", remove_disks=True)["failed"]
    assert own.exists() and cloned.node.domains() == {}
    again = cloned.both(name="web1", state="absent", remove_disks=True)
    assert again["actions"] == [f"delete {own}"] and not own.exists()


def test_a_template_that_rots_under_its_clones_is_named(site, cloned):
    cloned.run(**BASE, disks=[disk(site)])
    site.path.chmod(0o644)
    with site.path.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"rot")
    refused = site.make(verify=True)
    assert "has changed since it was made, and" in refused["msg"] and "VM web1" in refused["msg"]


def test_a_disk_that_others_are_based_on_is_not_removed(site, cloned, tmp_path):
    cloned.run(**BASE, disks=[disk(site)])
    own = tmp_path / "drover-web1-0.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", own, tmp_path / "experiment.qcow2")
    refused = cloned.run(name="web1", state="absent", remove_disks=True)
    assert f"is what {tmp_path}/experiment.qcow2 is based on" in refused["msg"]
    assert own.exists() and "web1" in cloned.node.domains()


def test_a_clone_stays_on_its_node_unless_its_template_is_shared_too(site, cloned, tmp_path):
    cloned.run(**BASE, disks=[disk(site)])
    domain = cloned.node.domain("web1")
    folders = str(tmp_path), str(site.path.parent)
    assert domain_facts(domain, folders)["disks"][0]["shared_storage"] is True
    for only in folders:
        # The folder of the templates is below that of the disks.
        shared = domain_facts(domain, [only])["disks"][0]["shared_storage"]
        assert shared is (only == str(tmp_path))


def test_a_drain_that_copies_disks_says_that_a_clone_must_be_flattened(site, cloned):
    cloned.run(**BASE, disks=[disk(site)], state="running")
    facts = domain_facts(cloned.node.domain("web1"))
    (obstacle,) = fixed.obstacles(facts, copies=True)
    assert obstacle.reason == "local_disk" and "flatten the linked clone" in obstacle.mend
    assert facts["disks"][0]["backing"] == [str(site.path)] and not fixed.copied(facts)
    alone = {**facts, "disks": [{**facts["disks"][0], "backing": []}]}
    assert fixed.obstacles(alone, copies=True) == () and fixed.copied(alone)


def test_without_libvirts_answer_nothing_is_removed(site, cloned, monkeypatch):
    def silent():
        raise Unreachable("libvirt is silent")

    monkeypatch.setattr(templates, "connect", silent)
    assert "libvirt is silent" in site.run(path=str(site.path), state="absent")["msg"]
    assert site.make()["actions"] == [] and site.path.exists()


def test_a_header_that_is_no_header(tmp_path):
    path = tmp_path / "a"
    for data in (
        b"",
        b"QFI\xfb",
        b"QFI\xfb" + b"\xff" * 16,
        b"QFI\xfb" + bytes(4) + (2**40).to_bytes(8, "big") + b"\0\0\0\5",
    ):
        path.write_bytes(data)
        assert template.backing_of(str(path)) is None and template.chain(str(path)) == []
    first, second = tmp_path / "1.qcow2", tmp_path / "2.qcow2"
    for one, other in ((first, second), (second, first)):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", other, one, "1M")
    assert template.chain(str(first)) == [str(second), str(first)]


def test_a_clone_of_another_vm_is_not_taken(site, cloned, tmp_path):
    cloned.run(**BASE, disks=[disk(site)])
    cloned.run(name="web1", state="absent")
    os.setxattr(tmp_path / "drover-web1-0.qcow2", "user.drover.vm", vm_uuid("other").encode())
    assert "is based on" in cloned.run(**BASE, disks=[disk(site)])["msg"] and cloned.node.domains() == {}


def test_clone_without_a_source_is_an_empty_disk(site, cloned, tmp_path):
    for number, kind in enumerate(("linked", "full")):
        one = {"type": "file", "format": "qcow2", "size": "1MiB", "clone": kind}
        result = cloned.both(**{**BASE, "name": f"web{number}"}, disks=[one])
        assert result["actions"][0] == f"create {tmp_path}/drover-web{number}-0.qcow2 (qcow2, 1MiB)"
        assert "backingStore" not in cloned.node.domain(f"web{number}").xml
