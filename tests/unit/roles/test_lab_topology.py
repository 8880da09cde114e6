# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's pure parts: what a topology becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab import ceph, controller_files, guest, topology
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.run import LabError

ROOT = Path(__file__).resolve().parents[3]
FILES = ROOT / "roles/lab/files"


@pytest.fixture
def data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / "topology.json").read_text(encoding="utf-8"))
    return found


def parsed(data: dict[str, Any]) -> topology.Topology:
    return topology.parse(json.dumps(data))


def test_every_nic_has_one_cable(data: dict[str, Any]) -> None:
    cables = topology.cables(parsed(data))
    assert len(cables) == 4 * 3 + 2
    assert topology.Cable("hv1", "nic1", "switch", "hv1-nic1") in cables
    assert topology.Cable("sink", "guests", "switch", "sink-100") in cables


def test_a_direct_cable_told_at_both_ends_is_one(data: dict[str, Any]) -> None:
    data["nodes"]["hv1"]["nics"]["ring"] = {"to": "hv2:ring"}
    data["nodes"]["hv2"]["nics"]["ring"] = {"to": "hv1:ring"}
    made = parsed(data)
    assert len([cable for cable in topology.cables(made) if cable.left_nic == "ring"]) == 1
    assert topology.far_end(made, "hv2", "ring") == ("hv1", "ring")
    assert topology.far_end(made, "hv1", "nic2") == ("switch", "hv1-nic2")


def test_the_core_bonds_each_node_and_trunks_only_the_known_vlans(data: dict[str, Any]) -> None:
    made = parsed(data)
    words = " ".join(topology.switch_arguments(made, made.switches["core"]))
    assert "add-bond core hv1-bond0 hv1-nic1 hv1-nic2" in words
    assert (
        "set port san1-bond0 lacp=active bond_mode=balance-tcp other_config:lacp-time=fast trunks=5,6,100,200" in words
    )
    assert "add-port core sink-100 tag=100" in words
    assert "mgmt0" not in words


def test_a_single_nic_is_a_plain_trunk(data: dict[str, Any]) -> None:
    data["nodes"]["hv1"]["nics"] = {
        "mgmt0": {"to": "mgmt", "network": "management"},
        "nic1": {"to": "core"},
    }
    made = parsed(data)
    words = " ".join(topology.switch_arguments(made, made.switches["core"]))
    assert "add-port core hv1-nic1 -- set port hv1-nic1 trunks=5,6,100,200" in words


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nodes": {}}, ""),
        ({"networks": {}}, "no network 'management'"),
        ({"switches": {}}, "no such switch"),
        ({"nodes": {"HV": {"groups": [], "number": 1, "networks": [], "nics": {}}}}, "name 'HV'"),
        ({"nodes": {"hv1": {"groups": [], "number": 1, "networks": [], "nics": {}}}}, "no NIC has a network"),
        ({"nodes": {"hv1": {}}}, "KeyError"),
    ],
)
def test_a_broken_topology_is_refused_by_name(data: dict[str, Any], change: dict[str, Any], text: str) -> None:
    if not text:
        assert parsed({**data, **change}).nodes == {}
        return
    with pytest.raises(topology.TopologyError, match=text):
        parsed({**data, **change})


def test_a_nic_to_nowhere_and_a_long_name_are_refused(data: dict[str, Any]) -> None:
    data["nodes"]["hv1"]["nics"]["nic1"]["to"] = "moon"
    with pytest.raises(topology.TopologyError, match="moon"):
        parsed(data)
    data["nodes"]["hv1"]["nics"]["nic1"]["to"] = "core"
    data["nodes"]["hypervisor-one"] = data["nodes"]["hv1"]
    with pytest.raises(topology.TopologyError, match="15 characters"):
        parsed(data)


def test_a_node_knows_its_address_and_its_neighbours(data: dict[str, Any]) -> None:
    made = parsed(data)
    files = topology.networkd_files(made, made.node("hv2"))
    assert list(files) == ["10-mgmt0.network"]
    assert "Address=10.231.0.12/24\n" in files["10-mgmt0.network"]
    assert "10.231.0.10 san1\n" in topology.hosts_file(made)
    with pytest.raises(topology.TopologyError, match="no node 'hv9'"):
        made.node("hv9")


def test_the_inventory_has_groups_addresses_and_a_way_in(data: dict[str, Any]) -> None:
    found = controller_files.inventory(parsed(data), "/state", "two", "tcg")["all"]
    assert sorted(found["children"]) == ["hypervisors", "san"]
    host = found["children"]["hypervisors"]["hosts"]["hv3"]
    assert host["ansible_host"] == "10.231.0.13"
    assert host["lab_addresses"]["migration"] == "10.231.6.13"
    assert host["lab_bonds"] == {"bond0": ["nic1", "nic2"]}
    assert found["vars"]["ansible_ssh_common_args"] == "-F /state/ssh_config"
    assert found["vars"]["lab_networks"]["storage"] == {"subnet": "10.231.5.0/24", "vlan": 5}


def test_ssh_checks_host_keys_and_enters_the_labs_namespace(data: dict[str, Any]) -> None:
    text = controller_files.ssh_config(parsed(data), "/state", "two.switch")
    assert "StrictHostKeyChecking yes" in text
    assert "nsenter --net=/run/netns/two.switch nc %h %p" in text
    assert controller_files.known_hosts({"hv1": "ssh-ed25519 AAAA hv1\n"}) == "hv1 ssh-ed25519 AAAA\n"


def test_a_guests_settings_are_a_block_with_a_mark() -> None:
    block = guest.settings_block({"name": "web1", "ip": "10.231.100.21/24"})
    assert len(block) == guest.CONFIG_SIZE
    assert block.startswith(b"DROVER-GUEST 1\ndrover.name=web1\ndrover.ip=10.231.100.21/24\n\0")
    with pytest.raises(LabError, match="without spaces"):
        guest.settings_block({"name": "web 1"})


def test_a_guests_record_is_read_back() -> None:
    record = guest.parse_record(b"DROVER1 6c9d-11 42 4200 0 web1\n" + bytes(480))
    assert record == guest.Record("6c9d-11", 42, 4200, 0, "web1")
    assert guest.parse_record(bytes(512)) is None
    assert guest.parse_record(b"DROVER1 x y z 0 web1") is None


def test_an_archive_has_headers_of_the_kernels_format() -> None:
    made = guest.archive({"modules/a.ko": b"abc"}, ["sh"], ["proc"])
    assert made.startswith(b"070701")
    assert len(made) % 4 == 0
    for name in (b"modules\0", b"modules/a.ko\0", b"bin/sh\0", b"proc\0", b"TRAILER!!!\0"):
        assert name in made


def test_a_modules_signature_is_cut_off() -> None:
    signature = b"S" * 20
    signed = b"module" + signature + bytes(8) + (20).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert guest.unsigned(signed) == b"module"
    assert guest.unsigned(b"module") == b"module"


def test_a_topology_without_software_has_the_defaults(data: dict[str, Any]) -> None:
    own = {key: value for key, value in data.items() if key not in topology.SOFTWARE}
    assert topology.parse(json.dumps(own), json.dumps(data)) == parsed(data)
    with pytest.raises(topology.TopologyError, match="suite"):
        parsed(own)


def test_a_node_may_have_another_release(data: dict[str, Any]) -> None:
    data["releases"] = {"bookworm": {"packages": ["tgt"]}}
    data["nodes"]["hv3"]["suite"] = "bookworm"
    made = parsed(data)
    other = made.release(made.node("hv3").suite)
    assert (other.suite, other.packages) == ("bookworm", ("tgt",))
    assert (other.base_packages, other.more_packages) == (made.base_packages, made.more_packages)
    assert made.release(made.node("hv1").suite) is made and made.suite == data["suite"]
    assert parsed(json.loads(made.text)) == made


def test_a_release_that_nobody_describes_or_that_a_vm_would_have_is_refused(data: dict[str, Any]) -> None:
    data["nodes"]["hv3"]["suite"] = "bookworm"
    with pytest.raises(topology.TopologyError, match="'bookworm' is not in releases"):
        parsed(data)
    data["releases"] = {"bookworm": {}}
    data["nodes"]["hv3"]["kind"] = "vm"
    with pytest.raises(topology.TopologyError, match="hv3"):
        parsed(data)


@pytest.fixture
def quorum() -> dict[str, Any]:
    """The example with Ceph, its software that of the default topology."""
    default = json.loads((FILES / "topology.json").read_text(encoding="utf-8"))
    example = json.loads((ROOT / "examples/ceph-quorum/topology.json").read_text(encoding="utf-8"))
    return {**{key: default[key] for key in topology.SOFTWARE}, **example}


def test_only_a_topology_with_ceph_has_its_packages(data: dict[str, Any], quorum: dict[str, Any]) -> None:
    assert "ceph-osd" not in parsed(data).packages
    assert parsed(data).ceph is None
    made = parsed(quorum)
    assert made.packages == (*quorum["packages"], *topology.CEPH_PACKAGES)
    again = parsed(json.loads(made.text))
    assert (again.packages, again.ceph) == (made.packages, made.ceph)


def test_the_osds_are_counted_through_the_nodes_and_copies_are_on_different_ones(quorum: dict[str, Any]) -> None:
    quorum["ceph"]["settings"] = {"osd": {"osd_heartbeat_grace": 5}}
    made = parsed(quorum)
    assert made.ceph
    assert made.ceph.numbers() == {"hv1": [0, 1], "hv2": [2, 3]}
    text = ceph.conf(made, made.ceph, "1234")
    for line in (
        "mon_host = 10.231.5.13,10.231.5.11,10.231.5.12",
        "osd_crush_chooseleaf_type = 1",
        "osd_pool_default_size = 2",
    ):
        assert f"{line}\n" in text
    assert "bluestore_block_size = 2147483648\n" in text.split("[osd]")[1]
    assert "osd_heartbeat_grace = 5\n" in text.split("[osd]")[1]
    assert "[osd]" not in ceph.conf(made, made.ceph, "1234", daemons=False)


def test_one_node_has_all_copies_when_there_is_no_other(quorum: dict[str, Any]) -> None:
    quorum["ceph"]["osds"] = {"hv1": 1}
    made = parsed(quorum)
    assert made.ceph
    text = ceph.conf(made, made.ceph, "1234")
    assert "osd_crush_chooseleaf_type = 0\n" in text
    assert "osd_pool_default_size = 1\n" in text


def test_keys_are_on_the_monitors_only_and_the_first_has_the_administrators(quorum: dict[str, Any]) -> None:
    quorum["ceph"]["monitors"] = ["q1", "hv2"]
    made = parsed(quorum)
    assert made.ceph
    keys = {name: ceph.new_key() for name in ("mon.", "client.admin", "mgr.q1", "mgr.hv2")}
    assert len(set(keys.values())) == 4
    on_monitor = ceph.files(made, made.ceph, "q1", "1234", keys)
    assert f"[client.admin]\n\tkey = {keys['client.admin']}\n" in on_monitor["/etc/ceph/ceph.client.admin.keyring"]
    second = ceph.files(made, made.ceph, "hv2", "1234", keys)
    assert keys["mon."] in second["/etc/ceph/lab/keyring"]
    assert not any(path.startswith("/etc/ceph/ceph.") for path in second)
    elsewhere = ceph.files(made, made.ceph, "hv1", "1234", keys)
    assert "/etc/ceph/ceph.conf" not in elsewhere
    assert not any(key in text for key in keys.values() for text in elsewhere.values())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"monitors": []}, "at least one monitor"),
        ({"osds": {"hv1": 0}}, "one OSD"),
        ({"osds": {"hv9": 1}}, "no node 'hv9'"),
        ({"size": "big"}, "size 'big'"),
        ({"network": "guests"}, "no NIC with network 'guests'"),
    ],
)
def test_a_broken_ceph_is_refused(quorum: dict[str, Any], change: dict[str, Any], text: str) -> None:
    quorum["ceph"].update(change)
    with pytest.raises(topology.TopologyError, match=text):
        parsed(quorum)


def test_ceph_is_not_for_emulated_nodes(quorum: dict[str, Any]) -> None:
    quorum["nodes"]["q1"]["kind"] = "vm"
    with pytest.raises(topology.TopologyError, match="q1 is no container"):
        parsed(quorum)


def test_the_inventory_says_how_to_reach_ceph(data: dict[str, Any], quorum: dict[str, Any]) -> None:
    found = controller_files.inventory(parsed(quorum), "/state", "two", "tcg")["all"]["vars"]["lab_ceph"]
    assert found == {"fsid": ceph.fsid("two"), "monitors": ["10.231.5.13", "10.231.5.11", "10.231.5.12"]}
    assert "lab_ceph" not in controller_files.inventory(parsed(data), "/state", "two", "tcg")["all"]["vars"]
