# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module snapshot against libvirt's test driver, with real qcow2 files where files are looked at."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _later, _quiesce
from ansible_collections.drover.kvm.plugins.module_utils._domain.site import Site
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node, connect, libvirt
from ansible_collections.drover.kvm.plugins.module_utils._snapshot import reverting
from ansible_collections.drover.kvm.plugins.module_utils._xml import Property, add, devices, find, parse, text_of
from ansible_collections.drover.kvm.plugins.modules import snapshot, snapshot_info
from ansible_collections.drover.kvm.tests.unit.frozen_guest import Guest, Systemd

pytestmark = [
    pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt"),
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
]
UUIDS = {"web1": "7d4da458-de51-4138-9921-aae15234a969", "db1": "2f8f1f5e-8a35-4bd0-9e3c-4e0c1d8d0d11"}
VM = """<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><metadata><drover:vm xmlns:drover="urn:drover:kvm:1"
version="1"><drover:home>hv1</drover:home>{safe}</drover:vm></metadata><memory>1024</memory><os><type>hvm</type></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/><target dev='vda'/>
</disk>{channel}</devices></domain>"""
# The test driver says nothing of its agent's state, which is as good as connected.
CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
LUN = "<disk type='network' device='disk'><source protocol='iscsi' name='iqn.x:y/1'><host name='h'/></source>{}</disk>"


def domain_snapshots(node, name):
    return node.connection.lookupByName(name).listAllSnapshots(0)


class Nodes:
    """What the test driver lacks: agents, files that begin with an external snapshot, and faults."""

    def __init__(self, node, guests, folder):
        self.node, self.guests, self.folder = node, guests, folder
        self.clock, self.internal = 1_900_000_000, Node.create_snapshot

    def define(self, name, image_format="qcow2", channel=CHANNEL, safe="", start=True):
        path = self.folder / f"{name}.{image_format}"
        if not path.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", image_format, str(path), "64M"], check=True)
        uuid = UUIDS[name]
        given = {"name": name, "uuid": uuid, "format": image_format, "path": path, "channel": channel, "safe": safe}
        self.node.define(VM.format(**given), validate=False)
        if start:
            self.node.start(name)

    def create(self, node, name, xml, disks_only, running):
        """As QEMU's driver: the machine writes to the new files from then on."""
        root, domain = parse(xml), node.domain(name)
        if not disks_only and not running:
            return self.internal(node, name, xml, False, False)
        add(root, "state").text = "disk-snapshot" if disks_only else "running"
        self.clock += 1
        add(root, "creationTime").text = str(self.clock)
        root.append(parse(domain.live_xml))
        known = [one for one in domain_snapshots(node, name) if one.isCurrent(0)]
        if known:
            add(add(root, "parent"), "name").text = known[0].getName()
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
        text = domain.xml
        for disk in find(root, "disks"):
            new = Property("source/@file").get(disk)
            if disk.get("snapshot") == "external":
                name_of = Property("target/@dev").get
                old = next(one for one in devices(parse(text), "disk") if name_of(one) == disk.get("name"))
                path, kind = Property("source/@file").get(old), Property("driver/@type").get(old)
                subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", path, "-F", kind, new], check=True)
                text = text.replace(f"'{path}'", f"'{new}'").replace(f"type='{kind}'/>", "type='qcow2'/>")
        node.connection.lookupByName(name).snapshotCreateXML(text_of(root), flags)
        node.destroy(name)
        node.define(text, validate=False)
        node.start(name)
        return None

    def snapshots(self, name):
        return sorted(one.getName() for one in self.node.connection.lookupByName(name).listAllSnapshots(0))


@pytest.fixture
def vms(tmp_path, monkeypatch):
    path = tmp_path / "node.xml"
    path.write_text("<node/>", encoding="utf-8")
    guests = {name: Guest() for name in UUIDS}
    systemd = Systemd({UUIDS[name]: guest for name, guest in guests.items()})
    monkeypatch.setattr(_later, "run", systemd.run)
    monkeypatch.setattr(_quiesce, "time", systemd.clock)
    for verb in ("freeze", "thaw", "list_file_systems"):
        monkeypatch.setattr(Node, verb, lambda _node, name, verb=verb: getattr(guests[name], verb)(name))
    monkeypatch.setattr(Node, "block_sizes", lambda *_args: {"capacity": 2**26})
    monkeypatch.setattr(Site, "peers", lambda *_args: ({}, []))
    monkeypatch.setattr(reverting, "cordon", lambda: None)
    with connect(f"test://{path}") as node:

        @contextmanager
        def same(_uri):
            yield node

        monkeypatch.setattr(snapshot, "connect", same)
        monkeypatch.setattr(snapshot_info, "connect", same)
        found = Nodes(node, guests, tmp_path)
        found.systemd = systemd

        def create(*args):
            return found.create(*args)

        monkeypatch.setattr(Node, "create_snapshot", create)
        yield found


@pytest.fixture
def run(vms, capsys):
    def module(check=False, **args):
        with patch_module_args({**args, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            snapshot.main()
        return json.loads(capsys.readouterr().out)

    return module


@pytest.fixture
def both(run):
    """The same call in check mode, for real, and again; returns the real result."""

    def module(again=False, **args):
        predicted, real = run(check=True, **args), run(**args)
        assert not real.get("failed"), real["msg"]
        for key in ("changed", "actions", "diff"):
            assert predicted[key] == real[key]
        repeated = run(**args)
        assert (repeated["changed"], repeated["actions"]) == (again, real["actions"] if again else [])
        return real

    return module


def only(result, vm=0):
    return result["vms"][vm]["snapshots"][0]


def test_a_snapshot_with_memory_comes_and_goes(both, run, vms):
    vms.define("web1")
    made = both(name="web1", snapshot="s1", memory=True, description="before all", tags=["b", "a"])
    assert made["actions"] == ["make the internal snapshot s1 of web1 (memory and disks)"]
    assert made["diff"]["after"]["vms"]["web1"]["snapshots"]["s1"]["kind"] == "internal"
    one = only(made)
    assert (one["name"], one["description"], one["tags"]) == ("s1", "before all", ["a", "b"])
    assert (one["memory"], one["managed"], one["current"], one["parent"]) == (True, True, True, None)
    assert vms.guests["web1"].asked == []
    gone = both(name="web1", snapshot="s1", state="absent")
    assert gone["actions"] == ["remove the internal snapshot s1 of web1"]
    assert vms.snapshots("web1") == [] and gone["vms"][0]["snapshots"] == []


def test_a_stopped_machine_needs_no_agent(both, vms):
    vms.define("web1", start=False)
    made = both(name="web1", snapshot="s1", memory=True, quiesce="required")
    assert made["actions"] == ["make the internal snapshot s1 of web1 (disks)"]
    assert only(made)["memory"] is False and vms.guests["web1"].asked == []


def test_disks_of_a_running_machine_are_frozen_meanwhile(both, run, vms, tmp_path):
    vms.define("web1", "raw")
    made = both(name="web1", snapshot="s1", quiesce="required")
    assert made["actions"] == ["make the external snapshot s1 of web1 (disks, its file systems frozen)"]
    one = only(made)
    assert one["quiesced"] is True and one["files"] == [str(tmp_path / "web1-vda.s1.qcow2")]
    assert vms.guests["web1"].asked == ["freeze", "thaw", "list"]
    assert not vms.guests["web1"].frozen and vms.systemd.timers == {}


def test_several_machines_are_frozen_together(both, vms, monkeypatch):
    vms.define("web1", "raw")
    vms.define("db1")
    frozen = []
    create = Node.create_snapshot

    def seen(node, name, *args):
        frozen.append((name, [one for one, guest in sorted(vms.guests.items()) if guest.frozen]))
        create(node, name, *args)

    monkeypatch.setattr(Node, "create_snapshot", seen)
    made = both(vms=["web1", "db1"], snapshot="s1")
    assert sorted(frozen) == [("db1", ["db1", "web1"]), ("web1", ["db1", "web1"])]
    assert [one["name"] for one in made["vms"]] == ["web1", "db1"]
    assert [only(made, number)["quiesced"] for number in (0, 1)] == [True, True]


def test_they_are_listed_whoever_is_at_work(run, vms, capsys, monkeypatch):
    for name in ("web1", "db1"):
        vms.define(name)
    made = run(name="web1", snapshot="s1", memory=True, description="before all", tags=["story"])
    monkeypatch.setattr(Node, "_job", staticmethod(lambda _found: {"type": "other"}))

    def listed(**args):
        with patch_module_args(args), pytest.raises(SystemExit):
            snapshot_info.main()
        return json.loads(capsys.readouterr().out)

    found = listed()
    assert [one["name"] for one in found["vms"]] == ["db1", "web1"] and not found["changed"]
    assert {**only(found, 1), "age": 0} == {**only(made), "age": 0} and found["vms"][0]["snapshots"] == []
    refused = run(name="web1", snapshot="s2", memory=True)
    assert refused["error"] == "Refused" and "another operation" in refused["msg"]
    assert [one["name"] for one in listed(name=["db1"])["vms"]] == ["db1"]
    assert "there is no VM web9" in listed(names=["web9"])["msg"]


def test_one_that_fails_leaves_none(run, vms, monkeypatch):
    vms.define("web1", "raw")
    vms.define("db1", "raw")
    create = Node.create_snapshot

    def fails(node, name, *args):
        if name == "db1":
            raise Failed("make a snapshot of VM db1: no space left on device")
        create(node, name, *args)

    monkeypatch.setattr(Node, "create_snapshot", fails)
    result = run(vms=["web1", "db1"], snapshot="s1")
    assert result["failed"] and "no space left" in result["msg"] and "no snapshot s1 of web1 either" in result["msg"]
    assert vms.snapshots("web1") == vms.snapshots("db1") == []
    assert not any(guest.frozen for guest in vms.guests.values()) and vms.systemd.timers == {}
    assert "urn:drover:snapshot:1" not in vms.node.domain("web1").xml


@pytest.mark.parametrize("verb", ["delete_snapshot", "snapshots"])
def test_one_that_can_not_be_taken_back_is_named(run, vms, monkeypatch, verb):
    vms.define("web1", "raw")
    vms.define("db1", "raw")
    create, really = Node.create_snapshot, getattr(Node, verb)
    made = []

    def fails(node, name, *args):
        create(node, name, *args)
        made.append(name)
        if name == "db1":
            raise Failed("make a snapshot of VM db1: connection lost")

    def silent(node, name, *args):
        if made and name == "web1":
            raise Failed("libvirt does not answer")
        return really(node, name, *args)

    monkeypatch.setattr(Node, "create_snapshot", fails)
    with monkeypatch.context() as patched:
        patched.setattr(Node, verb, silent)
        result = run(vms=["web1", "db1"], snapshot="s1")
    assert result["failed"] and "may still be there of web1 (libvirt does not answer)" in result["msg"], result
    assert "connection lost" in result["msg"] and "state: absent for web1" in result["msg"]
    assert vms.snapshots("web1") == ["s1"] and vms.snapshots("db1") == []
    assert run(name="web1", snapshot="s1", state="absent")["changed"] and vms.snapshots("web1") == []


def test_who_wrote_again_was_not_quiesced(run, vms, monkeypatch):
    vms.define("web1", "raw")
    create = Node.create_snapshot

    def slowly(node, name, *args):
        create(node, name, *args)
        vms.systemd.clock.sleep(_quiesce.HOLD_SECONDS + 1)

    monkeypatch.setattr(Node, "create_snapshot", slowly)
    result = run(name="web1", snapshot="s1", quiesce="required")
    assert result["failed"] and "wrote again before the snapshot was done" in result["msg"]
    assert vms.snapshots("web1") == []
    result = run(name="web1", snapshot="s2")
    assert only(result)["quiesced"] is False and "web1 is not quiesced" in str(result["warnings"])


@pytest.mark.parametrize("quiesce", ["auto", "required"])
def test_an_agent_that_hangs(run, vms, quiesce):
    vms.define("web1", "raw")
    vms.guests["web1"].deaf = True
    result = run(name="web1", snapshot="s1", quiesce=quiesce)
    if quiesce == "required":
        assert result["failed"] and "not responding" in result["msg"] and vms.snapshots("web1") == []
    else:
        assert only(result)["quiesced"] is False and "web1 is not quiesced" in str(result["warnings"])


def test_without_an_agent(run, vms):
    vms.define("web1", "raw", channel="")
    result = run(name="web1", snapshot="s1", quiesce="required")
    assert result["failed"] and "web1 can't be quiesced: it has no channel" in result["msg"]
    result = run(name="web1", snapshot="s1")
    assert "as after a power cut" in str(result["warnings"]) and vms.guests["web1"].asked == []


REFUSED = [
    ({"memory": True, "kind": "internal"}, "raw", "", True, "is no qcow2 file"),
    ({"kind": "internal"}, "qcow2", "", True, "say memory: true"),
    ({}, "qcow2", LUN.format("<target dev='vdb'/>"), True, "or keep the volume on its server"),
    ({"directory": "/srv"}, "qcow2", LUN.format("<target dev='vdb'/>"), False, "start it first, or keep the volume"),
    ({"directory": "/nonesuch"}, "raw", "", True, "folder /nonesuch for the changes of web1 does not exist"),
    ({"max_chain": 1}, "raw", "", True, "vda lies in 1 files, and max_chain is 1"),
]


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(run, vms, case):
    args, image_format, more, start, words = case
    vms.define("web1", image_format, channel=more, start=start)
    before = vms.node.domain("web1").xml
    result = run(name="web1", snapshot="s1", **args)
    assert result["failed"] and result["error"] == "Refused" and words in result["msg"], result
    assert vms.snapshots("web1") == [] and vms.node.domain("web1").xml == before


def test_the_two_kinds_are_not_mixed(run, vms):
    vms.define("web1")
    assert run(name="web1", snapshot="s1", memory=True)["changed"]
    result = run(name="web1", snapshot="s2")
    assert "it has internal ones already" in result["msg"] and "say memory: true" in result["msg"]
    result = run(name="web1", snapshot="s2", kind="external")
    assert "an external one beside them could not be deleted again" in result["msg"]


def test_a_file_in_the_way_is_not_touched(run, vms, tmp_path):
    vms.define("web1", "raw")
    (tmp_path / "web1-vda.s1.qcow2").write_text("precious")
    result = run(name="web1", snapshot="s1")
    assert result["error"] == "Refused" and "is there already" in result["msg"]


def test_what_other_tools_made_is_left_alone(run, vms):
    vms.define("web1")
    vms.node.create_snapshot("web1", "<domainsnapshot><name>s1</name></domainsnapshot>", False, False)
    result = run(name="web1", snapshot="s1", tags=["mine"])
    assert not result["changed"] and "made by other means" in str(result["warnings"]) and not only(result)["managed"]
    result = run(name="web1", snapshot="s1", state="absent")
    assert result["error"] == "Refused" and "virsh snapshot-delete web1 s1" in result["msg"]
    assert not run(name="web1", state="retained", keep=0)["changed"]
    assert vms.snapshots("web1") == ["s1"]


def test_another_tools_of_the_name_of_one_that_was_ours_is_left_alone(run, vms):
    vms.define("web1")
    run(name="web1", snapshot="s1")
    vms.node.delete_snapshot("web1", "s1")
    vms.node.create_snapshot("web1", "<domainsnapshot><name>s1</name></domainsnapshot>", False, False)
    assert run(name="web1", snapshot="s1", state="absent")["error"] == "Refused"
    assert not run(name="web1", state="retained", keep=0)["changed"]
    assert vms.snapshots("web1") == ["s1"]


def test_one_of_a_name_whose_note_was_left_is_ours(run, vms):
    """It was removed by hand, or the run that removed it was killed before it took its note away."""
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True, tags=["old"])
    vms.node.delete_snapshot("web1", "s1")
    made = only(run(name="web1", snapshot="s1", memory=True))
    assert made["managed"] and made["tags"] == []
    assert run(name="web1", snapshot="s1", state="absent")["changed"] and vms.snapshots("web1") == []


def test_a_drive_with_another_medium_says_what_to_do(run, vms, monkeypatch):
    """As libvirt 11.3 says it."""
    words = "disk image 'sda' for internal snapshot 's1' is not the same as disk image currently used by VM"
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True)

    def refuse(*_args):
        raise Failed(words)

    monkeypatch.setattr(Node, "delete_snapshot", refuse)
    kept = run(name="web1", snapshot="s1", state="absent")
    assert kept["failed"] and "put that back into the drive" in kept["msg"] and vms.snapshots("web1") == ["s1"]


def test_an_internal_one_is_not_gone_back_to_while_a_backup_is_noted(run, vms, monkeypatch):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True)
    monkeypatch.setattr(type(vms.node), "checkpoints", lambda _node, _name: ["drover-1", "drover-2"])
    back = {"name": "web1", "snapshot": "s1", "state": "reverted", "discard_changes_since": "s1"}
    for check in (True, False):
        result = run(**back, _ansible_check_mode=check)
        assert result["error"] == "Refused" and vms.snapshots("web1") == ["s1"]
    assert result["msg"].endswith("virsh checkpoint-delete web1 drover-2; virsh checkpoint-delete web1 drover-1")


def test_tags_of_one_that_is_there_are_changed(both, run, vms):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True, tags=["a"])
    made = both(name="web1", snapshot="s1", tags=["b"], description="more")
    assert made["actions"] == ["note description and tags of snapshot s1 of web1"]
    assert (only(made)["tags"], only(made)["description"]) == (["b"], "more")
    assert not run(name="web1", snapshot="s1")["changed"]


def test_another_kind_under_the_same_name_is_refused(run, vms):
    vms.define("web1", "raw")
    run(name="web1", snapshot="s1")
    assert "without memory; take another name" in run(name="web1", snapshot="s1", memory=True)["msg"]
    assert "is external" in run(name="web1", snapshot="s1", kind="internal")["msg"]


def at(monkeypatch, moment):
    monkeypatch.setattr(snapshot, "time", lambda: moment)


def test_the_newest_are_kept(both, run, vms):
    vms.define("web1", start=False)
    for number in range(4):
        run(name="web1", snapshot=f"n{number}", tags=["nightly"])
    run(name="web1", snapshot="other")
    gone = both(name="web1", state="retained", keep=2, tags=["nightly"])
    assert gone["actions"] == [f"remove the internal snapshot n{number} of web1" for number in (0, 1)]
    assert vms.snapshots("web1") == ["n2", "n3", "other"]


def test_young_ones_are_kept(run, vms, monkeypatch):
    vms.define("web1", start=False)
    run(name="web1", snapshot="s1")
    assert not run(name="web1", state="retained", max_age="1h")["changed"]
    (made,) = vms.node.snapshots("web1")
    moment = int(made[0].partition("<creationTime>")[2].partition("<")[0])
    at(monkeypatch, moment + 3600)
    assert not run(name="web1", state="retained", max_age="1h")["changed"]
    at(monkeypatch, moment + 3601)
    assert not run(name="web1", state="retained", max_age="1h", keep=1)["changed"]
    assert run(name="web1", state="retained", max_age="1h")["changed"]


INVALID = [
    ({"state": "retained"}, "state is retained but any of the following are missing: keep, max_age"),
    ({"state": "present"}, "snapshot"),
    ({"state": "retained", "keep": -1}, "keep=-1 is less than 0"),
    ({"state": "retained", "keep": 1, "snapshot": "x"}, "leave snapshot out"),
    ({"snapshot": "x/y"}, "is not a valid name"),
    ({"snapshot": "x", "max_age": "soon"}, "is no span of time"),
    ({"snapshot": "x", "directory": "srv/../etc"}, "is not the path of a file"),
]


@pytest.mark.parametrize("args, words", INVALID)
def test_wrong_input(run, vms, args, words):
    vms.define("web1")
    result = run(name="web1", **args)
    assert result["failed"] and words in result["msg"] and vms.snapshots("web1") == []


def test_a_vm_that_is_missing_or_named_twice(run, vms):
    vms.define("web1")
    assert "there is no VM web9" in run(vms=["web1", "web9"], snapshot="s1")["msg"]
    assert "name each VM once" in run(vms=["web1", "web1"], snapshot="s1")["msg"]
    assert vms.snapshots("web1") == []


# ---- the way back

OWNED = "<vm version='1'><home>hv1</home><owner>me</owner></vm>"
BACK = {"name": "web1", "snapshot": "s1", "state": "reverted", "discard_changes_since": "s1"}


@pytest.fixture
def reverts(vms, monkeypatch):
    """The calls that set a VM back."""
    found, really = [], Node.revert

    def seen(node, name, one, start):
        found.append((name, one, start))
        really(node, name, one, start)

    monkeypatch.setattr(Node, "revert", seen)
    monkeypatch.setattr(Node, "set_guest_time", lambda _node, name, seconds: vms.clocks.update({name: seconds}))
    monkeypatch.setattr(Node, "guest_time", lambda _node, name: vms.clocks[name])
    vms.clocks = {}
    return found


def test_a_vm_is_set_back_once_for_an_id(both, run, vms, reverts):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True, tags=["a"])
    back = both(**BACK, id="CHG-1")
    assert [step.partition(" ")[0] for step in back["actions"]] == ["note", "keep", "set", "note"]
    assert back["actions"][2].endswith("all changes since are lost, but for the safety snapshot")
    assert back["lost"]["web1"]["kept"] == [] and back["lost"]["web1"]["age"] >= 0
    assert reverts == [("web1", "s1", False)] and vms.snapshots("web1") == ["before-s1-CHG-1", "s1"]
    assert vms.clocks["web1"] > 0
    xml = vms.node.domain("web1").xml
    assert "CHG-1" in xml and "<drover:home>hv1</drover:home>" in xml
    tags = {one["name"]: one["tags"] for one in back["vms"][0]["snapshots"]}
    assert tags == {"s1": ["a"], "before-s1-CHG-1": ["safety"]}


def test_without_an_id_it_is_an_act(both, run, vms, reverts):
    vms.define("web1", start=False)
    run(name="web1", snapshot="s1")
    both(**BACK, safety_snapshot=False, again=True)
    assert len(reverts) == 2 and vms.snapshots("web1") == ["s1"]


def test_tags_that_were_given_since_are_kept(run, vms, reverts):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True)
    run(name="web1", snapshot="s2", memory=True, tags=["later"])
    vms.node.set_metadata("web1", "drover", "urn:drover:kvm:1", OWNED, live=True, config=True)
    back = run(**BACK, id="A")
    tags = {one["name"]: one["tags"] for one in back["vms"][0]["snapshots"]}
    assert tags == {"s1": [], "s2": ["later"], "before-s1-A": ["safety"]}
    assert "<drover:owner>me</drover:owner>" in vms.node.domain("web1").xml and back["lost"]["web1"]["kept"] == ["s2"]


def no_answer(*_args):
    return {}, ["hv2"]


@pytest.mark.parametrize(
    "args, words",
    [
        ({"discard_changes_since": None}, "loses all changes since"),
        ({"discard_changes_since": "s2"}, "say discard_changes_since: s1"),
        ({"snapshot": "s9"}, "web1 has no snapshot s9; it has s1"),
    ],
)
def test_what_is_lost_must_be_said(run, vms, reverts, args, words):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True)
    result = run(**{**BACK, **args})
    assert result["failed"] and words in result["msg"] and reverts == [] and vms.snapshots("web1") == ["s1"]


def test_over_a_volume_there_is_no_way_back_but_by_hand(run, vms, reverts):
    vms.define("web1", "raw")
    run(name="web1", snapshot="s1")
    domain = vms.node.connection.lookupByName("web1")
    xml = domain.snapshotLookupByName("s1").getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    old, new = f"<source file='{vms.folder}/web1.raw'", "<source dev='/dev/san/web1'"
    assert old in xml
    xml = xml.replace("<disk type='file' device='disk'>", "<disk type='block' device='disk'>").replace(old, new)
    domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    before = vms.node.domain("web1").xml
    for check in (True, False):
        result = run(check=check, **BACK)
        assert result["failed"] and "snapshots of files only; vda is none" in result["msg"], result
    assert reverts == [] and vms.snapshots("web1") == ["s1"] and vms.node.domain("web1").xml == before


def test_some_machines_can_not_go_back(run, vms, reverts):
    vms.define("web1", safe="<drover:rollback_safe>no</drover:rollback_safe>")
    run(name="web1", snapshot="s1", memory=True)
    result = run(**BACK)
    assert "rollback_safe: false" in result["msg"] and "i_know: [web1]" in result["msg"] and reverts == []
    assert run(**BACK, i_know=["web1"])["changed"] and len(reverts) == 1


def test_a_cordoned_node_starts_nothing(run, vms, reverts, monkeypatch):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True)
    monkeypatch.setattr(reverting, "cordon", lambda: {"reason": "new memory"})
    assert "cordoned (new memory)" in run(**BACK)["msg"] and reverts == []


def test_a_vm_that_is_off_may_run_elsewhere(run, vms, reverts, monkeypatch):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True)
    vms.node.destroy("web1")
    monkeypatch.setattr(Site, "peers", no_answer)
    assert "hv2 gave no answer, and it may run there" in run(**BACK)["msg"] and reverts == []
    assert run(**BACK, fenced=["hv2"])["changed"] and vms.node.domain("web1").state == "running"


def test_external_ones_need_a_newer_libvirt(run, vms, reverts, monkeypatch):
    vms.define("web1", "raw")
    run(name="web1", snapshot="s1")
    monkeypatch.setattr(Node, "version", lambda _node: 9000000)
    assert "takes libvirt 9.10" in run(**BACK)["msg"] and reverts == []


def test_one_that_says_reverted_and_did_nothing(run, vms, monkeypatch):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True)
    monkeypatch.setattr(Node, "revert", lambda *_args: None)
    result = run(**BACK, id="A")
    assert result["failed"] and "web1 was not set back to s1" in result["msg"], result


def test_a_revert_that_fails_says_what_is_left(run, vms, monkeypatch):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True)

    def fails(node, name, *_args):
        node.destroy(name)
        raise Failed("set back to snapshot s1 VM web1: no memory")

    monkeypatch.setattr(Node, "revert", fails)
    result = run(**BACK, id="A")
    assert "web1 is stopped now, and what it was is in the snapshot before-s1-A" in result["msg"]


class Killed(BaseException):
    """SIGKILL."""


@pytest.fixture
def kill(monkeypatch):
    """Run the module until it is killed in a call of a verb of `Node`: the one of this number, before or after it."""

    def killed(moment, **args):
        verb, at, late = moment
        really, calls = getattr(Node, verb), []

        def call(*given, **named):
            calls.append(given)
            if len(calls) == at and not late:
                raise Killed
            really(*given, **named)
            if len(calls) == at:
                raise Killed

        with monkeypatch.context() as patched, patch_module_args({**args, "_ansible_check_mode": False}):
            patched.setattr(Node, verb, call)
            with pytest.raises(Killed):
                snapshot.main()

    return killed


WRITES = [("set_metadata", at, late) for at in range(1, 7) for late in (False, True)]
CALLS = [(verb, 1, late) for verb in ("create_snapshot", "revert") for late in (False, True)]


@pytest.mark.parametrize("moment", WRITES + CALLS)
def test_an_interrupted_one_is_finished_by_the_same_id(run, vms, reverts, kill, moment):
    vms.define("web1")
    run(name="web1", snapshot="s1", memory=True, tags=["a"])
    vms.node.set_metadata("web1", "drover", "urn:drover:kvm:1", OWNED, live=True, config=True)
    run(name="web1", snapshot="s1", tags=["b"])
    kill(moment, **BACK, id="A")
    again = run(**BACK, id="A")
    assert not again.get("failed"), again
    assert reverts == [("web1", "s1", False)] and vms.snapshots("web1") == ["before-s1-A", "s1"]
    xml = vms.node.domain("web1").xml
    assert 'state="done"' in xml and "<drover:owner>me</drover:owner>" in xml
    tags = {one["name"]: one["tags"] for one in again["vms"][0]["snapshots"]}
    assert tags == {"s1": ["b"], "before-s1-A": ["safety"]}
    assert not run(**BACK, id="A")["changed"]


@pytest.mark.parametrize("moment", [*WRITES[:4], *CALLS[:2]])
def test_an_interrupted_snapshot_is_completed(run, vms, kill, moment):
    vms.define("web1")
    given = {"name": "web1", "snapshot": "s1", "memory": True, "tags": ["a"]}
    kill(moment, **given)
    done = run(**given)
    assert not done.get("failed") and only(done)["tags"] == ["a"] and only(done)["managed"]
    assert vms.snapshots("web1") == ["s1"] and not run(**given)["changed"]
