# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM that is off moves with what it keeps in files, between two small nodes; cut off, both ends are whole."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Refused
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect, libvirt
from ansible_collections.drover.kvm.plugins.module_utils._migration import ends as real_ends
from ansible_collections.drover.kvm.plugins.module_utils._migration import offline, order
from ansible_collections.drover.kvm.tests.unit import libvirt_server

UUID = "7d4da458-de51-4138-9921-aae15234a969"
VARIABLES, KEYS = "/var/lib/libvirt/qemu/nvram/web1_VARS.fd", f"/var/lib/libvirt/swtpm/{UUID}/tpm2/tpm2-00.permall"


class Cut(Exception):
    """The helper was killed."""


class Node:
    """A node: the definition, the marker and the files; `log` is what was done on all of them."""

    def __init__(self, name, log, files=None):
        self.name, self.log, self.files, self.claims = name, log, dict(files or {}), set()
        self.defined, self.mark, self.starts, self.volumes = False, None, False, self
        self.after = {}

    def note(self, text):
        self.log.append(f"{text} on {self.name}")
        self.after.get(text, lambda: None)()

    def state(self, uuid):
        return ("running" if self.starts else "stopped", "") if self.defined else None

    def marker(self, uuid):
        return self.mark

    def set_marker(self, uuid, marker):
        self.mark = marker
        self.note("mark" if marker else "unmark")

    def autostart(self, uuid):
        return False

    def home(self, uuid):
        return None

    def has_managed_save(self, uuid):
        return False

    def definition(self, uuid):
        return "<domain/>"

    def define(self, text):
        self.defined = True
        self.note("define")

    def undefine(self, uuid):
        self.defined = False
        self.note("undefine")

    def kept(self, uuid):
        return sorted(self.files)

    def read(self, path):
        return self.files[path]

    def write(self, path, content):
        self.files[path] = content
        self.claims.add(path)
        self.note("write")

    def release(self, paths):
        self.claims -= set(paths)
        self.note("release")

    def forget(self, paths):
        for path in paths:
            self.files.pop(path, None)
        self.note("forget")


class Silent:
    def phase(self, name, **more):
        pass


@pytest.fixture
def ends():
    log = []
    source = Node("hv1", log, {VARIABLES: b"boots from the second disk", KEYS: b"the key of the disk"})
    source.defined = True
    return source, Node("hv2", log)


def move(source, target, **given):
    values = {"id": "1", "kind": "offline", "vm": "web1", "uuid": UUID, "source": "hv1", "target": "hv2", "here": "hv1"}
    task = order.Order(**{**values, "state": sorted(source.files), **given})
    return offline.move_definition(task, source, target, Silent())


def test_its_files_are_there_before_it_is_and_go_at_last(ends):
    source, target = ends
    before = dict(source.files)
    move(source, target)
    assert target.files == before and target.claims == set() and target.defined and target.mark is None
    assert source.files == {} and not source.defined
    assert source.log == [
        "mark on hv1",
        "write on hv2",
        "write on hv2",
        "define on hv2",
        "undefine on hv1",
        "release on hv2",
        "forget on hv1",
        "unmark on hv2",
    ]


def test_one_that_has_no_such_files_moves_as_well(ends):
    source, target = ends
    source.files.clear()
    move(source, target)
    assert target.defined and not source.defined and target.files == {}


def test_the_marker_names_what_is_copied_and_what_stays_behind(ends):
    source, target = ends
    marks = []
    source.after["mark"] = lambda: marks.append(source.mark)
    move(source, target)
    assert [marks[0][name] for name in ("was", "copies", "state")] == ["shutoff", *[[VARIABLES, KEYS]] * 2]


def test_files_that_came_since_are_refused_before_anything_is_done(ends):
    source, target = ends
    with pytest.raises(Refused, match="not those that were seen"):
        move(source, target, state=[VARIABLES])
    assert source.log == []


@pytest.mark.parametrize("change", ["content", "file", "start"])
def test_one_that_somebody_uses_meanwhile_stays(ends, change):
    source, target = ends

    def used():
        source.starts = change == "start"
        source.files.update({"content": {VARIABLES: b"other"}, "file": {"/new": b""}}.get(change, {}))

    target.after["define"] = used
    with pytest.raises(Failed, match="no longer shut off as it was"):
        move(source, target)
    assert source.defined and {VARIABLES, KEYS} <= source.files.keys() and source.mark


@pytest.mark.parametrize("moment", ["write", "define", "undefine", "release", "forget"])
def test_cut_off_at_any_moment_one_end_has_all_of_it(ends, moment):
    source, target = ends
    before = dict(source.files)

    def cut():
        raise Cut

    for node in ends:
        node.after[moment] = cut
    with pytest.raises(Cut):
        move(source, target)
    holders = [node for node in ends if node.defined and node.files == before]
    assert holders and (source.mark or target.mark or not source.defined)


MACHINE = f"""<domain type='qemu'><name>web1</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory>
<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
<devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>"""


@pytest.fixture
def daemons():
    """Two libvirts, each with folders of its own, and the ends of a move between them."""
    lacking = "libvirt's Python library" if libvirt is None else libvirt_server.missing()
    if lacking or not (shutil.which("swtpm_setup") and Path("/usr/share/OVMF").is_dir()):
        pytest.skip(lacking or "not installed: swtpm, UEFI")
    with ExitStack() as stack:
        found = []
        for name in ("hv1", "hv2"):
            daemon = stack.enter_context(libvirt_server.private_libvirtd())
            end = real_ends.End(stack.enter_context(connect(daemon.uri(), name=name)))
            end.kept = lambda uuid, daemon=daemon: files(daemon)
            found.append((daemon, end))
        yield found


def files(daemon):
    """What the node has of it, as its own libvirt sees the paths."""
    root = daemon.path("")
    there = [path for kind in (VARIABLES, KEYS) for path in daemon.path(kind).parent.glob("[!.]*")]
    return sorted(f"/{path.relative_to(root)}" for path in there)


@pytest.mark.slow
def test_a_real_machine_has_its_variables_and_keys_where_it_came(daemons):
    (here, source), (there, target) = daemons
    domain = source.connection.defineXML(MACHINE)
    domain.create()
    domain.destroy()
    before = {path: here.path(path).read_bytes() for path in files(here)}
    assert set(before) == {VARIABLES, KEYS}
    task = {"id": "1", "kind": "offline", "vm": "web1", "uuid": UUID, "source": "hv1", "target": "hv2", "here": "hv1"}
    offline.move_definition(order.Order(**task, state=sorted(before)), source, target, Silent())
    assert files(here) == [] and source.state(UUID) is None and target.marker(UUID) is None
    assert {path: there.path(path).read_bytes() for path in files(there)} == before
    # libvirt gives them to whom it runs QEMU and swtpm as, and takes them for the machine's.
    moved = target.connection.lookupByUUIDString(UUID)
    moved.create()
    moved.destroy()
    assert {path: there.path(path).read_bytes() for path in files(there)} == before
