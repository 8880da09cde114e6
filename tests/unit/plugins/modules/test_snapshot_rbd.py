# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module snapshot where the disks are RBD images: libvirt's test driver, and a Ceph cluster in memory."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _later
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node, libvirt
from ansible_collections.drover.kvm.plugins.module_utils._rbd import Images
from ansible_collections.drover.kvm.plugins.module_utils._snapshot import rolling, volumes
from ansible_collections.drover.kvm.tests.unit import rbd_library
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_snapshot import (
    BACK,
    CHANNEL,
    UUIDS,
    Killed,
    both,
    only,
    run,
    vms,
)
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_vm import ceph

__all__ = ["both", "ceph", "run", "vms"]
pytestmark = pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt")
MIB = 1 << 20
VM = """<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><metadata><drover:vm xmlns:drover="urn:drover:kvm:1"
version="1"><drover:home>hv1</drover:home></drover:vm></metadata><memory>1024</memory><os><type>hvm</type></os>
<devices>{disks}{channel}</devices></domain>"""
DISK = """<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='vms/{image}'>
<host name='10.231.5.13' port='6789'/></source><target dev='{target}' bus='virtio'/></disk>"""
FILE = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/x.qcow2'/>
<target dev='vdz' bus='virtio'/></disk>"""
ADDRESS = "10.231.5.11"


class Site:
    """VMs with images, which a running VM has open; what their guests write; and when they stand still."""

    def __init__(self, vms, ceph, monkeypatch):
        self.vms, self.node, self.images = vms, vms.node, ceph.pools["vms"]
        self.events = []
        really = {verb: getattr(Node, verb) for verb in ("start", "destroy", "suspend", "resume")}

        def verb(what):
            def call(node, name, *args):
                self.events.append(f"{what} {name}")
                really[what](node, name, *args)
                if what in ("start", "destroy"):
                    self.open(name, what == "start")

            return call

        for name in really:
            monkeypatch.setattr(Node, name, verb(name))
        monkeypatch.setattr(_later, "run", self.systemd)
        snap = ceph.pools["vms"].snap

        def seen(image, name, **more):
            state = self.node.domain("web1").state if self.node.domain("web1") else ""
            frozen = [one for one, guest in sorted(vms.guests.items()) if guest.frozen]
            self.events.append(f"take {image}@{name} {state} {frozen}")
            snap(image, name, **more)

        monkeypatch.setattr(ceph.pools["vms"], "snap", seen, raising=False)

    def define(self, name="web1", disks=2, more="", start=True, channel=CHANNEL):
        found = [DISK.format(image=f"{name}-{number}", target=f"vd{'abc'[number]}") for number in range(disks)]
        xml = VM.format(name=name, uuid=UUIDS[name], disks="".join(found) + more, channel=channel)
        for number in range(disks):
            if f"{name}-{number}" not in self.images:
                self.images.add(f"{name}-{number}", 64 * MIB)
                self.write(f"{name}-{number}", 0, "first")
        self.node.define(xml, validate=False)
        if start:
            self.node.start(name)
        self.events.clear()

    def open(self, name, on):
        for image in [image for image in self.images if image.startswith(f"{name}-")]:
            self.images[image]["watchers"] = [ADDRESS] if on else []

    def systemd(self, argv, **more):
        """Timers that thaw are those of the fake; of those that resume it is told that they come and go."""
        if "drover-resume-" not in " ".join(argv):
            self.vms.systemd.run(argv, **more)
        elif not argv[-1].endswith(".service"):
            self.events.append(argv[0])

    def timer(self):
        """What a timer of systemd does for a VM that was paused by a run that is no more."""
        if self.node.domain("web1").state == "paused":
            self.node.resume("web1")

    def write(self, image, offset, text):
        self.images[image]["data"][offset] = text

    def read(self, *names, snapshot=None):
        found = [self.images[name] for name in names or ("web1-0", "web1-1")]
        return [(one["snaps"][snapshot] if snapshot else one)["data"] for one in found]

    def snaps(self, image="web1-0"):
        return sorted(self.images[image]["snaps"])

    def marks(self, image="web1-0"):
        return {key: json.loads(text) for key, text in self.images[image]["meta"].items()}


@pytest.fixture
def site(vms, ceph, monkeypatch):
    return Site(vms, ceph, monkeypatch)


def test_a_snapshot_of_all_images_is_of_one_moment(both, site):
    site.define()
    made = both(name="web1", snapshot="s1", description="before all", tags=["b", "a"])
    words = "make the rbd snapshot s1 of web1 (disks, its file systems frozen, paused for the moment)"
    assert made["actions"] == [words]
    taken = [event for event in site.events if event.startswith("take")]
    assert sorted(taken) == [f"take web1-{number}@s1 paused ['web1']" for number in (0, 1)]
    rest = [event for event in site.events if event not in taken]
    assert rest == ["systemd-run", "suspend web1", "resume web1", "systemctl"]
    assert site.node.domain("web1").state == "running" and not site.vms.guests["web1"].frozen
    one = only(made)
    assert (one["name"], one["kind"], one["description"], one["tags"]) == ("s1", "rbd", "before all", ["a", "b"])
    assert (one["managed"], one["complete"], one["quiesced"], one["memory"]) == (True, True, True, False)
    assert one["files"] == ["vms/web1-0@s1", "vms/web1-1@s1"] and one["size"] == 2 * rbd_library.OBJECT
    # libvirt knows nothing of it, so that the VM can be moved.
    assert site.vms.snapshots("web1") == [] and "urn:drover:snapshot:1" not in site.node.domain("web1").xml
    gone = both(name="web1", snapshot="s1", state="absent")
    assert gone["actions"] == ["remove the rbd snapshot s1 of web1"]
    assert site.snaps("web1-0") == site.snaps("web1-1") == [] and site.marks() == {}


def test_one_image_needs_no_pause(both, site):
    site.define(disks=1)
    made = both(name="web1", snapshot="s1")
    assert made["actions"] == ["make the rbd snapshot s1 of web1 (disks, its file systems frozen)"]
    assert site.events == ["take web1-0@s1 running ['web1']"]


def test_several_machines_of_one_moment(both, site):
    site.define(disks=1)
    site.define("db1", disks=1, channel="")
    made = both(vms=["web1", "db1"], snapshot="s1", quiesce="never")
    assert "paused for the moment" in made["actions"][0]
    order = [event.split()[0] for event in site.events if event.split()[0] in ("suspend", "take", "resume")]
    assert order == ["suspend"] * 2 + ["take"] * 2 + ["resume"] * 2


def test_one_that_is_off_is_neither_asked_nor_paused(both, site):
    site.define(start=False)
    made = both(name="web1", snapshot="s1", memory=True, quiesce="required")
    assert made["actions"] == ["make the rbd snapshot s1 of web1 (disks)"]
    assert [event.split()[0] for event in site.events] == ["take", "take"]


@pytest.mark.parametrize("late", [False, True])
def test_one_image_that_fails_leaves_none(run, site, monkeypatch, late):
    site.define()
    take = Images.take

    def fails(images, image, name):
        made = take(images, image, name) if image != "web1-1" or late else 0
        if image == "web1-1":
            raise Failed("make snapshot s1 of vms/web1-1: no answer")
        return made

    monkeypatch.setattr(Images, "take", fails)
    result = run(name="web1", snapshot="s1")
    assert result["failed"] and "no answer; there is no snapshot s1" in result["msg"]
    assert site.snaps("web1-0") == site.snaps("web1-1") == []
    assert site.node.domain("web1").state == "running" and not site.vms.guests["web1"].frozen


def test_clocks_that_differ(run, site, monkeypatch):
    """Ceph's are an hour ahead."""
    site.define()
    late = rbd_library.time.time() + 3600
    monkeypatch.setattr(rbd_library, "time", SimpleNamespace(time=lambda: late))
    assert only(run(name="web1", snapshot="s1"))["complete"]

    def fails(argv, **more):
        site.systemd(argv, **more)
        if argv[0] == "systemctl":
            raise Failed("no bus")

    monkeypatch.setattr(_later, "run", fails)
    result = run(name="web1", snapshot="s2")
    assert result["failed"] and "no bus; there is no snapshot s2" in result["msg"] and site.snaps() == ["s1"]


def test_what_others_made_is_left_alone(run, site):
    site.define()
    for image in ("web1-0", "web1-1"):
        site.images.snap(image, "theirs")
    site.images.snap("web1-1", "half")
    site.images.snap("web1-1", "of-a-group", namespace=1)
    result = run(name="web1", snapshot="theirs", tags=["mine"])
    assert not result["changed"] and "made by other means" in str(result["warnings"])
    assert {one["name"] for one in result["vms"][0]["snapshots"]} == {"half", "theirs"} and not only(result)["managed"]
    result = run(name="web1", snapshot="half")
    assert result["error"] == "Refused" and "vda (vms/web1-0) has no part in it" in result["msg"]
    result = run(name="web1", snapshot="theirs", state="absent")
    assert result["error"] == "Refused" and "rbd snap rm vms/web1-0@theirs; rbd snap rm vms/web1-1@" in result["msg"]
    assert not run(name="web1", state="retained", keep=0)["changed"]
    result = run(**{**BACK, "snapshot": "theirs", "discard_changes_since": "theirs"})
    assert result["error"] == "Refused" and "made by other means" in result["msg"]
    # They stand in nobody's way.
    assert run(name="web1", snapshot="s1")["changed"]
    assert site.snaps("web1-1") == ["half", "of-a-group", "s1", "theirs"]


def test_another_tools_of_the_name_of_one_that_was_ours(run, site):
    site.define()
    run(name="web1", snapshot="s1")
    for image in ("web1-0", "web1-1"):
        del site.images[image]["snaps"]["s1"]
        site.images.snap(image, "s1")
    assert run(name="web1", snapshot="s1", state="absent")["error"] == "Refused"
    assert not run(name="web1", state="retained", keep=0)["changed"] and site.snaps() == ["s1"]


def test_it_is_ours_also_when_the_definition_was_lost(run, site):
    site.define()
    run(name="web1", snapshot="s1", tags=["a"], description="words")
    site.node.destroy("web1")
    site.node.undefine("web1")
    site.define(start=False)
    one = only(run(name="web1", state="retained", keep=9))
    assert (one["managed"], one["tags"], one["description"]) == (True, ["a"], "words")
    # A VM of another UUID is another one, as a clone is that took the marks along.
    for image in ("web1-0", "web1-1"):
        for key, mark in site.marks(image).items():
            site.images[image]["meta"][key] = json.dumps({**mark, "vm": UUIDS["db1"]})
    assert not only(run(name="web1", state="retained", keep=9))["managed"]


def test_tags_are_changed_and_the_newest_are_kept(both, run, site, monkeypatch):
    site.define()
    for number in range(3):
        run(name="web1", snapshot=f"n{number}", tags=["nightly"])
        for image in ("web1-0", "web1-1"):
            site.images[image]["snaps"][f"n{number}"]["time"] -= 100 - number
    made = both(name="web1", snapshot="n0", tags=["other"])
    assert made["actions"] == ["note description and tags of snapshot n0 of web1"]
    gone = both(name="web1", state="retained", keep=1, tags=["nightly"])
    assert gone["actions"] == ["remove the rbd snapshot n1 of web1"] and site.snaps() == ["n0", "n2"]


def test_one_that_others_stand_on_is_not_removed(run, site):
    site.define()
    run(name="web1", snapshot="s1")
    site.images["web1-1"]["snaps"]["s1"]["protected"] = True
    for check in (True, False):
        result = run(name="web1", snapshot="s1", state="absent", check=check)
        assert result["error"] == "Refused" and "vms/web1-1@s1 is protected" in result["msg"]
    assert site.snaps("web1-0") == ["s1"]


REFUSED = [
    ({"memory": True}, "", "no rbd one, as RBD keeps the disks alone"),
    ({"kind": "internal"}, "", "no internal one, as vda ("),
    ({}, FILE, "no rbd one, as vdz (file:/srv/x.qcow2) is no RBD image"),
    ({"kind": "rbd"}, FILE, "no rbd one, as vdz (file:/srv/x.qcow2) is no RBD image"),
]


@pytest.mark.parametrize("args, more, words", REFUSED)
def test_what_is_refused_changes_nothing(run, site, args, more, words):
    site.define(more=more)
    result = run(name="web1", snapshot="s1", **args)
    assert result["error"] == "Refused" and words in result["msg"], result
    assert site.snaps("web1-0") == site.snaps("web1-1") == [] and site.marks() == {}


def test_a_directory_asks_for_an_external_one(run, site, tmp_path):
    site.define()
    planned = run(name="web1", snapshot="s1", directory=str(tmp_path), check=True)
    assert "make the external snapshot s1" in planned["actions"][0]
    run(name="web1", snapshot="s1")
    result = run(name="web1", snapshot="s2", kind="external", directory=str(tmp_path))
    assert "has rbd snapshots; an external one beside them" in result["msg"]


def test_a_machine_that_is_paused_may_go_on_between_two_images(run, site):
    site.define()
    site.node.suspend("web1")
    result = run(name="web1", snapshot="s1")
    assert result["error"] == "Refused" and "it is paused, and might go on" in result["msg"]


MOMENTS = [
    *((Images, "mark", at, late) for at in (1, 2, 3, 4) for late in (False, True)),
    *((Images, "take", at, late) for at in (1, 2) for late in (False, True)),
    *[(Node, "suspend", 1, False), (Node, "resume", 1, True)],
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_snapshot_is_made_anew(run, site, killed, moment):
    site.define()
    given = {"name": "web1", "snapshot": "s1", "tags": ["a"], "quiesce": "never"}
    killed(moment, **given)
    site.timer()
    told = run(**given, check=True)
    done = run(**given)
    assert not done.get("failed") and done["actions"] == told["actions"], done
    assert (only(done)["tags"], only(done)["managed"], only(done)["complete"]) == (["a"], True, True)
    assert site.snaps("web1-0") == site.snaps("web1-1") == ["s1"] and not run(**given)["changed"]


def test_what_a_killed_run_left_is_removed(run, site, killed):
    site.define()
    killed((Images, "take", 2, False), name="web1", snapshot="s1", quiesce="never")
    site.timer()
    assert not only(run(name="web1", snapshot="s2"))["complete"]
    assert "was interrupted" in run(**BACK)["msg"]
    assert run(name="web1", state="retained", keep=5)["actions"] == ["remove the rbd snapshot s1 of web1"]
    assert site.snaps() == ["s2"]


def test_later_ones_of_that_name_are_not_taken_for_what_was_left(run, site, killed):
    site.define()
    killed((Images, "take", 1, False), name="web1", snapshot="s1", quiesce="never")
    site.timer()
    for image in ("web1-0", "web1-1"):
        site.images[image]["snaps"].clear()
        site.images.snap(image, "s1", time=rbd_library.time.time() + volumes.WINDOW + 1)
    assert run(name="web1", snapshot="s1", state="absent")["error"] == "Refused" and site.snaps() == ["s1"]


# ---- the way back


@pytest.fixture
def killed(run, monkeypatch):
    """Run the module until it is killed in a verb: the one of this number, before or after it."""

    def call(moment, **args):
        owner, verb, at, late = moment
        really, calls = getattr(owner, verb), []

        def call(*given, **named):
            calls.append(given)
            if len(calls) == at and not late:
                raise Killed
            if len(calls) > at:
                raise Killed
            result = really(*given, **named)
            if len(calls) == at:
                raise Killed
            return result

        with monkeypatch.context() as patched:
            patched.setattr(owner, verb, call)
            with pytest.raises(Killed):
                run(**args)

    return call


def changed(site):
    """s1, and what was written after it."""
    for image in ("web1-0", "web1-1"):
        site.write(image, 0, "second")
        site.write(image, 9 * MIB, "more")


FIRST = [{0: "first"}] * 2
SECOND = [{0: "second", 9 * MIB: "more"}] * 2


@pytest.mark.parametrize("runs", [True, False])
def test_a_vm_is_set_back_once_for_an_id(both, run, site, runs):
    site.define(start=runs)
    run(name="web1", snapshot="s1", tags=["a"])
    changed(site)
    run(name="web1", snapshot="s2")
    back = both(**BACK, id="CHG-1")
    words = [step.partition(" ")[0] for step in back["actions"]]
    assert words == ["note", *(["cut"] if runs else []), "keep", "set", "note"]
    lost = back["lost"]["web1"]
    assert (lost["bytes"], lost["kept"]) == (2 * 2 * 512, ["s2"]) and lost["age"] >= 0
    assert site.read() == FIRST and site.read(snapshot="before-s1-CHG-1") == SECOND
    assert site.node.domain("web1").state == ("running" if runs else "stopped")
    tags = {one["name"]: one["tags"] for one in back["vms"][0]["snapshots"]}
    assert tags == {"s1": ["a"], "s2": [], "before-s1-CHG-1": ["safety"]}
    changed(site)
    assert not run(**BACK, id="CHG-1")["changed"] and site.read() == SECOND


def test_an_image_that_grew_has_its_size_of_then(run, site):
    site.define(start=False)
    run(name="web1", snapshot="s1")
    site.images["web1-1"]["size"] = 128 * MIB
    site.write("web1-1", 100 * MIB, "more")
    assert run(**BACK)["changed"] and site.images["web1-1"]["size"] == 64 * MIB and site.read() == FIRST


HALVES = [
    *((Node, "set_metadata", at, late) for at in (1, 2, 3, 4) for late in (False, True)),
    *((Images, "roll_back", at, late) for at in (1, 2) for late in (False, True)),
    *((Images, "take", at, late) for at in (1, 2) for late in (False, True)),
    *((Images, "mark", at, late) for at in (1, 4) for late in (False, True)),
]
POWER = [(Node, verb, 1, late) for verb in ("destroy", "start") for late in (False, True)]
CASES = [*((one, runs) for one in HALVES for runs in (True, False)), *((one, True) for one in POWER)]


@pytest.mark.parametrize("moment, runs", CASES)
def test_an_interrupted_one_is_finished_by_the_same_id(run, site, killed, moment, runs):
    site.define(start=runs)
    run(name="web1", snapshot="s1", tags=["a"])
    changed(site)
    killed(moment, **BACK, id="A")
    half = run(name="web1", snapshot="s9", check=True)
    assert bool(half.get("failed")) == ('state="rolling"' in site.node.domain("web1").xml), half
    again = run(**BACK, id="A")
    assert not again.get("failed"), again
    assert site.read() == FIRST and site.read(snapshot="before-s1-A") == SECOND
    assert site.node.domain("web1").state == ("running" if runs else "stopped")
    assert site.snaps("web1-0") == site.snaps("web1-1") == ["before-s1-A", "s1"]
    assert not run(**BACK, id="A")["changed"]


def test_half_set_back_nothing_else_is_done(run, site, killed, monkeypatch):
    site.define(start=False)
    run(name="web1", snapshot="s1")
    changed(site)
    killed((Images, "roll_back", 1, True), **BACK)
    assert sorted(map(str, site.read())) == sorted(map(str, [FIRST[0], SECOND[0]]))
    for args in ({"snapshot": "s2"}, {"snapshot": "s1", "state": "absent"}, {"state": "retained", "keep": 0}, BACK):
        result = run(**{"name": "web1", **args})
        assert result["error"] == "Refused" and "web1 is half set back to s1" in result["msg"], result
    act = result["msg"].rpartition("id=")[2]
    # Ceph knows the killed run for another half minute.
    site.images["web1-1"]["watchers"] = [ADDRESS]
    passed = []

    def sleep(seconds):
        passed.append(seconds)
        site.images["web1-1"]["watchers"] = [] if sum(passed) > 30 else [ADDRESS]

    monkeypatch.setattr(rolling.time, "sleep", sleep)
    done = run(**BACK, id=act)
    assert not done.get("failed") and site.read() == FIRST and site.read(snapshot=f"before-s1-{act}") == SECOND


def test_an_image_that_somebody_has_open_is_not_set_back(run, site):
    site.define(start=False)
    run(name="web1", snapshot="s1")
    changed(site)
    site.images["web1-1"]["watchers"] = ["10.231.5.99"]
    result = run(**BACK)
    assert result["error"] == "Refused" and "10.231.5.99 has it open" in result["msg"] and site.read() == SECOND


def test_one_that_says_done_and_did_nothing(run, site, monkeypatch):
    site.define()
    run(name="web1", snapshot="s1")
    changed(site)
    monkeypatch.setattr(Images, "roll_back", lambda *_args: None)
    result = run(**BACK, id="A")
    assert result["failed"] and "is not what it was in s1" in result["msg"] and "id=A" in result["msg"]
    assert site.node.domain("web1").state == "stopped"


def test_a_disk_of_another_moment(run, site):
    site.define(disks=2)
    run(name="web1", snapshot="s1")
    site.node.destroy("web1")
    site.define(disks=3, start=False)
    result = run(**BACK)
    assert result["error"] == "Refused" and "vdc (vms/web1-2) has no part in it" in result["msg"]
    assert "remove it, or take another name" in run(name="web1", snapshot="s1")["msg"]
    site.define(disks=1, start=False)
    assert "vms/web1-1 has a part in it and is no disk of the VM now" in run(**BACK)["msg"]
    assert only(run(name="web1", snapshot="s2"))["complete"] is False


def test_the_size_of_a_snapshot_is_not_known_of_old_images(run, site):
    site.define()
    site.images["web1-1"]["features"] = 0
    made = run(name="web1", snapshot="s1")
    changed(site)
    assert only(made)["size"] is None and run(**BACK, check=True)["lost"]["web1"]["bytes"] == 2048
    assert run(**BACK)["changed"] and site.read() == FIRST


def test_what_is_lost_is_known_after_an_earlier_way_back(run, site):
    site.define()
    run(name="web1", snapshot="s1")
    changed(site)
    run(name="web1", snapshot="s2")
    run(**BACK, safety_snapshot=False)
    # To s2 again: what the way back undid has changed since, which the map of objects does not know.
    lost = run(**{**BACK, "snapshot": "s2", "discard_changes_since": "s2"}, check=True)["lost"]["web1"]
    assert lost["bytes"] == 1024
