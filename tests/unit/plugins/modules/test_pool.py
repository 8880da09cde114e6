# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module pool against libvirt's test driver."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _ceph_conf, _lvm
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect, libvirt
from ansible_collections.drover.kvm.plugins.modules import pool
from ansible_collections.drover.kvm.tests.unit import hostile

pytestmark = pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt")
DISK = "<disk type='volume'><source pool='media' volume='a.iso'/><target dev='vda'/></disk>"
VM = "<domain type='test'><name>{}</name><memory>1024</memory><os><type>hvm</type></os><devices>{}</devices></domain>"


@pytest.fixture
def node(tmp_path, monkeypatch):
    path = tmp_path / "node.xml"
    path.write_text("<node/>", encoding="utf-8")
    with connect(f"test://{path}") as node:

        @contextmanager
        def same(_uri):
            yield node

        monkeypatch.setattr(pool, "connect", same)
        groups = {"vg0": _lvm.Group(4, 0), "vmsan": _lvm.Group(4, 0, lock="sanlock")}
        monkeypatch.setattr(_lvm.Lvm, "groups", lambda _self: groups)
        yield node


@pytest.fixture
def run(node, capsys):
    def module(**args):
        with patch_module_args(args), pytest.raises(SystemExit):
            pool.main()
        return json.loads(capsys.readouterr().out)

    return module


def both(run, **args):
    """The same call in check mode, for real, and again; returns the real result."""
    predicted = run(**args, _ansible_check_mode=True)
    real = run(**args)
    for key in ("changed", "actions", "diff", "pool"):
        assert predicted[key] == real[key]
    again = run(**args)
    assert (again["changed"], again["actions"], again["pool"]) == (False, [], real["pool"])
    return real


def test_a_pool_from_nothing_to_nothing(run, node):
    made = both(run, name="media", path="/srv/media/")
    assert made["actions"] == [
        "define pool media at /srv/media",
        "make its folder if it is missing",
        "activate it with the node",
        "activate it",
    ]
    found = node.pool("media")
    assert (found.path, found.state, found.autostart) == ("/srv/media", "active", True)
    assert both(run, name="media", autostart=False, state="inactive")["actions"] == [
        "don't activate it with the node",
        "deactivate it",
    ]
    assert both(run, name="media")["actions"] == ["activate it"]
    assert node.pool("media").autostart is False
    gone = both(run, name="media", state="absent")
    assert gone["actions"] == ["deactivate pool media", "remove the definition of pool media; its files stay"]
    assert node.pools() == {}


def test_a_pool_that_a_vm_uses_stays(run, node):
    both(run, name="media", path="/srv/media")
    node.define(VM.format("web1", DISK))
    for state in ("absent", "inactive"):
        result = run(name="media", state=state)
        assert result["failed"] and "used by disks of web1" in result["msg"]
    assert node.pool("media").state == "active"
    assert run(name="media")["changed"] is False


def test_a_vm_that_names_a_path_does_not_hold_the_pool(run, node):
    both(run, name="media", path="/srv/media")
    node.define(VM.format("web1", "<disk><source file='/srv/media/a'/><target dev='vda'/></disk>"))
    assert both(run, name="media", state="absent")["changed"]


@pytest.mark.parametrize(
    "args, words",
    [
        ({"name": "media"}, "path is missing; a new pool of type dir needs it"),
        ({"name": "a/b", "path": "/srv/x"}, "name: 'a/b' is not a valid name"),
        ({"name": "media", "path": "srv"}, "path: 'srv' is not a folder"),
        ({"name": "media", "path": "/srv/../etc"}, "path: "),
        ({"name": "media", "path": "//"}, "path: "),
        ({"name": "media", "path": "/srv/\n"}, "path: "),
    ],
)
def test_bad_input_names_the_option_and_changes_nothing(run, node, args, words):
    result = run(**args)
    assert result["failed"] and words in result["msg"] and node.pools() == {}


def test_the_path_of_a_pool_stays(run, node):
    both(run, name="media", path="/srv/media")
    result = run(name="media", path="/srv/other")
    assert result["failed"] and "can't become /srv/other" in result["msg"]
    assert node.pool("media").path == "/srv/media"


@pytest.fixture
def monitors(tmp_path, monkeypatch):
    (tmp_path / "ceph.conf").write_text("[global]\nmon_host = 10.231.5.13,[fd00::13]\n")
    monkeypatch.setattr(_ceph_conf, "FOLDER", tmp_path)


KINDS = {
    "rbd": (
        {"source": "vms"},
        {"hosts": ["10.231.5.13:6789", "[fd00::13]:6789"], "user": "libvirt", "secret": "client.libvirt", "path": None},
    ),
    "netfs": ({"source": "/export/media", "hosts": ["nas1"], "path": "/srv/media"}, {"hosts": ["nas1"], "user": None}),
    "iscsi-direct": (
        {
            "source": "iqn.2026-11.org.example:a",
            "hosts": ["[fd00::10]"],
            "initiator": "iqn.2026-11.org.example:hv1",
            "user": "drover",
            "secret": "san1",
        },
        {
            "hosts": ["[fd00::10]:3260"],
            "user": "drover",
            "secret": "san1",
            "path": None,
            "initiator": "iqn.2026-11.org.example:hv1",
        },
    ),
    "logical": ({"source": "vg0"}, {"path": "/dev/vg0", "hosts": []}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pools_of_other_kinds(run, node, monitors, kind):
    options, found = KINDS[kind]
    made = both(run, name="more", type=kind, **options, state="inactive")
    assert {name: made["pool"][name] for name in (*found, "source")} == {**found, "source": options["source"]}
    assert ("make its folder if it is missing" in made["actions"]) == (kind == "netfs")
    other = run(name="more", type=kind, **{**options, "source": options["source"] + "2"})
    assert other["failed"] and "can't become" in other["msg"]
    assert both(run, name="more", state="absent")["pool"] is None


def test_a_group_that_nodes_share_is_no_pool(run, node):
    options = {"name": "more", "type": "logical", "source": "vmsan"}
    for state in ("active", "inactive"):
        refused = run(**options, state=state)
        assert refused["failed"] and "nodes share volume group vmsan" in refused["msg"] and node.pool("more") is None
    source = "<source><name>vmsan</name></source><target><path>/dev/vmsan</path></target>"
    node.define_pool(f"<pool type='logical'><name>more</name>{source}</pool>")
    assert run(**options)["failed"]
    assert not run(**options, state="absent").get("failed")


# As virsh pool-capabilities of libvirt 11.3 on Debian 13 has them.
CAPABILITIES = """<storagepoolCapabilities>
  <pool type='netfs' supported='yes'><poolOptions/></pool><pool type='logical' supported='no'></pool>
</storagepoolCapabilities>"""


def test_a_kind_that_libvirt_has_no_driver_for(run, node, monkeypatch):
    def asked(_connection, _flags):
        return CAPABILITIES

    monkeypatch.setattr(type(node.connection), "getStoragePoolCapabilities", asked)
    options = {"name": "more", "type": "logical", "source": "vg0", "state": "inactive"}
    for check in (True, False):
        refused = run(**options, _ansible_check_mode=check)
        assert refused["failed"] and "libvirt-daemon-driver-storage-logical" in refused["msg"]
    assert node.pool("more") is None
    for kind in ("netfs", "rbd"):
        assert not run(name=kind, type=kind, **{**KINDS[kind][0], "hosts": ["nas1"]}, state="inactive").get("failed")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"type": "rbd"}, "source is missing"),
        ({"type": "rbd", "source": "a b"}, "not a valid name"),
        ({"type": "netfs", "source": "/x", "path": "/y"}, "hosts is missing"),
        ({"type": "netfs", "source": "/x", "path": "/y", "hosts": ["-o"]}, "is not a monitor"),
        ({"type": "logical"}, "source is missing"),
        (
            {"type": "iscsi-direct", "source": "iqn.2026-11.org.example:a", "hosts": ["10.0.5.10"]},
            "initiator is missing",
        ),
        ({"type": "iscsi-direct", "source": "iqn.2026-11.org.example:A"}, "iSCSI qualified name"),
    ],
)
def test_pools_that_lack_something(run, node, monitors, options, words):
    result = run(name="more", **options)
    assert result["failed"] and words in result["msg"] and node.pool("more") is None


@hostile.fuzz(pool.FIELDS[:-1], {"name": "media", "path": "/srv/media"}, {"name": "media"}, quick=30)
def test_any_input_gets_a_clear_answer(run, node, args):
    hostile.answered(run, node.pools, args)
    for found in node.pools().values():
        if found.state == "active":
            node.stop_pool(found.name)
        node.undefine_pool(found.name)
