# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sheets and volumes from the variables of the inventory, and the words for mistakes in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.plugins.filter.iscsi_volumes import FilterModule as Volumes
from ansible_collections.drover.kvm.plugins.filter.vm_sheet import FilterModule as Sheets
from ansible_collections.drover.kvm.plugins.filter.vm_variables import FilterModule as Variables
from ansible_collections.drover.kvm.plugins.module_utils._domain.inventory import (
    iscsi_volumes,
    san_snapshots,
    vm_sheet,
    vm_variables,
)
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_uuid

GIB = 2**30
FILTERS = Path(__file__).resolve().parents[4] / "plugins/filter"
SAN = {
    "vm_iscsi_iqn_prefix": "iqn.2026-11.org.example",
    "vm_iscsi_portal": "10.231.5.10:3260",
    "vm_iscsi_user": "drover",
    "vm_iscsi_secret": "san1",
    "vm_iscsi_chap_secret": "a secret of 16 ch",
}
WEB: dict[str, Any] = {"inventory_hostname": "web1", "ansible_host": "x", "guest_address": "1.2.3.4", **SAN}


def test_a_profile_is_enough():
    sheet = vm_sheet({**WEB, "vm_profile": "standard", "vm_nics": [{"bridge": "br0", "vlan": 100}]})
    disk = sheet["disks"].pop()
    assert sheet == {
        "name": "web1",
        "state": "running",
        "vcpus": 4,
        "memory": 4 * GIB,
        "nics": [{"bridge": "br0", "vlan": 100}],
        "disks": [],
    }
    assert disk["iqn"] == "iqn.2026-11.org.example:drover-web1-0" and disk["size"] == 40 * GIB
    assert disk["portal"] == SAN["vm_iscsi_portal"] and disk["user"] == "drover" and disk["secret"] == "san1"


def test_without_new_disks_a_missing_disk_can_not_be_made():
    clone = {"type": "file", "path": "/d", "source": "/t", "clone": "full"}
    disks = [{"type": "iscsi", "source": "/srv/web1.img"}, clone]
    web = {**WEB, "vm_profile": "large", "vm_disks": disks}
    sheet = vm_sheet(web, new_disks=False)
    assert sheet["disks"][0].keys() == {"type", "iqn", "portal", "user", "secret"}
    assert sheet["disks"][1] == {"type": "file", "path": "/d"}
    assert {**sheet, "disks": vm_sheet(web)["disks"]} == vm_sheet(web)
    assert vm_sheet({**WEB, "vm_memory": "1GiB", "vm_vcpus": 1}, new_disks=False).get("disks") is None


def test_what_is_given_wins_over_the_profile_and_nothing_is_shared():
    disks = [{"type": "iscsi", "size": "1GiB", "user": "other"}, {"type": "file", "format": "raw", "size": "2GiB"}]
    variables = {**WEB, "vm_profile": "large", "vm_memory": "1GiB", "vm_disks": disks, "vm_state": "stopped"}
    sheet = vm_sheet({**variables, "vm_title": "The shop"})
    assert sheet["title"] == "The shop" and vm_sheet({**variables, "vm_title": ""})["title"] == ""
    assert sheet["memory"] == GIB and sheet["vcpus"] == 8 and sheet["state"] == "stopped"
    assert sheet["disks"][0]["user"] == "other" and sheet["disks"][1] == disks[1]
    assert "iqn" not in disks[0], "the inventory's own data must stay as it is"


def test_a_disk_on_ceph_takes_its_pool_from_the_variables():
    ceph = {"inventory_hostname": "web1", "vm_rbd_pool": "vms", "vm_rbd_user": "kvm", "vm_rbd_monitors": ["10.0.0.1"]}
    shared = {"type": "rbd", "pool": "vms", "user": "kvm", "monitors": ["10.0.0.1"]}
    assert vm_sheet({**ceph, "vm_profile": "standard"})["disks"] == [{**shared, "size": 40 * GIB}]
    disks = [{"type": "rbd", "pool": "fast"}, {"type": "rbd", "source": "vms/debian@base"}]
    sheet = vm_sheet({**ceph, "vm_disks": disks})
    assert sheet["disks"] == [{**shared, "pool": "fast"}, {**shared, "source": "vms/debian@base"}]
    assert iscsi_volumes([sheet]) == []
    with pytest.raises(Invalid, match="needs pool, or the variable vm_rbd_pool"):
        vm_sheet({"inventory_hostname": "web1", "vm_disks": [{"type": "rbd"}]})


def test_volumes_belong_to_their_vm():
    disks = [
        {"type": "iscsi", "size": "1GiB", "source": "/srv/drover/images/a.img"},
        {"type": "iscsi", "target": "vdd"},
    ]
    media = {"type": "file", "device": "cdrom", "path": "/srv/a.iso"}
    sheets = [vm_sheet({**WEB, "vm_disks": [media, *disks], "vm_memory": "1GiB", "vm_vcpus": 1})]
    first, second = iscsi_volumes(sheets, {"web1": WEB})
    assert first == {
        "name": "drover-web1-0",
        "iqn": "iqn.2026-11.org.example:drover-web1-0",
        "size": "1GiB",
        "source": "/srv/drover/images/a.img",
        "initiators": ["iqn.2026-01.org.drover:vm-web1"],
        "chap_user": "drover",
        "chap_password": SAN["vm_iscsi_chap_secret"],
        "owner": "web1",
        "vm_uuid": vm_uuid("web1"),
    }
    assert second["name"] == "drover-web1-3"
    assert "chap_password" not in iscsi_volumes(sheets)[0]
    assert "a secret" not in json.dumps(sheets)


def test_snapshots_for_a_backup_are_called_like_their_volumes():
    disks = [{"type": "iscsi", "size": "1GiB"}, {"type": "iscsi", "bus": "scsi"}, {"type": "iscsi", "target": "vdx"}]
    disks += [{"type": "iscsi", "readonly": True}, {"type": "file", "device": "cdrom", "path": "/srv/a.iso"}]
    sheet = vm_sheet({**WEB, "vm_disks": disks, "vm_memory": "1GiB", "vm_vcpus": 1})
    (found,) = san_snapshots([sheet], {"web1": WEB})
    assert found["volumes"][0] == {
        "name": "drover-web1-0-backup",
        "iqn": "iqn.2026-11.org.example:drover-web1-0-backup",
        "snapshot_of": "drover-web1-0",
        "initiators": ["iqn.2026-01.org.drover:vm-web1"],
        "chap_user": "drover",
        "chap_password": SAN["vm_iscsi_chap_secret"],
        "owner": "web1",
        "vm_uuid": vm_uuid("web1"),
    }
    assert [one["target"] for one in found["disks"]] == ["vda", "sdb", "vdx"]
    assert [one["iqn"] for one in found["disks"]] == [one["iqn"] for one in found["volumes"]]
    assert "chap_password" not in san_snapshots([sheet])[0]["volumes"][0]


def test_volumes_without_chap_are_said_to_be_so():
    sheet = vm_sheet({**WEB, "vm_profile": "standard", "vm_iscsi_user": ""})
    assert (sheet["disks"][0]["user"], sheet["disks"][0]["secret"]) == ("", "")
    assert iscsi_volumes([sheet])[0]["chap_user"] == ""


def test_names_that_no_iqn_can_have_stay_apart():
    names = ("Web_1", "web-1", "web_1")
    sheets = [vm_sheet({**WEB, "inventory_hostname": name, "vm_profile": "standard"}) for name in names]
    iqns = [sheet["disks"][0]["iqn"] for sheet in sheets]
    assert len(set(iqns)) == 3 and all(iqn == iqn.lower() and "_" not in iqn for iqn in iqns)


MISTAKES = [
    ({"vm_memroy": "1GiB"}, "web1: there is no variable vm_memroy; did you mean vm_memory"),
    ({"vm_zzz": 1}, "there is no variable vm_zzz; there are .*vm_autostart"),
    ({"vm_memory": "4GB"}, "web1: vm_memory: '4GB' is not a size"),
    ({"vm_vcpus": "many"}, "web1: vm_vcpus: 'many' is not a whole number"),
    ({"vm_nics": [{"bridge": "br0", "vlan": "x"}]}, "vm_nics.0..vlan: 'x' is not a whole number"),
    ({"vm_boot": "floppy"}, "vm_boot: write one or more of"),
    ({"vm_uuid": 7}, "vm_uuid: '7' is not a UUID"),
    ({"vm_title": "two\nlines"}, "web1: vm_title: write one line"),
    ({"vm_cpu": ["Nehalem"]}, "vm_cpu: .'Nehalem'. is not a text"),
    ({"vm_memory": {"GiB": 1}}, "vm_memory: .* is not a size"),
    ({"vm_profile": "huge"}, "vm_profile: 'huge' is none of standard, large"),
    ({"vm_state": "up"}, "vm_state: 'up' is none of"),
    ({"vm_disks": "40GiB"}, "vm_disks: write a list of dictionaries"),
    ({"vm_disks": [{"type": "iscsi", "szie": "1GiB"}]}, "vm_disks.0.: there is no option szie; did you mean .*size"),
    ({"vm_disks": [{"type": "iscsi", "sise": "1GiB"}]}, "vm_disks.0.: there is no option sise; did you mean size"),
    ({"vm_disks": [{"type": "iscsi"}], "vm_iscsi_portal": None}, "needs portal, or the variable vm_iscsi_portal"),
    ({"vm_nics": [{"bridge": "br0", "vlan": 4095}]}, "vm_nics.0..vlan: 4095 is not a VLAN"),
    ({"vm_nics": ["br0"]}, "vm_nics: write a list of dictionaries"),
    ({"inventory_hostname": "../x"}, "is not a valid name"),
    ({"vm_firmware": "uefi"}, "web1: vm_firmware: uefi is none of bios, efi"),
    ({"vm_video": "cga"}, "web1: vm_video: cga is none of none, vga"),
    ({"vm_tpm": 1.2}, "vm_tpm: 1.2 is none of none, 2.0"),
    ({"vm_nics": [{"bridge": "br0", "model": "rtl"}]}, "vm_nics.0..model: rtl is none of virtio, "),
    ({"vm_disks": [{"type": "nfs"}]}, "vm_disks.0..type: nfs is none of iscsi, file"),
    ({"vm_graphics": {"type": "rdp"}}, "vm_graphics.type: rdp is none of none, vnc"),
    ({"vm_autostart": "perhaps"}, "web1: vm_autostart: 'perhaps' is not a boolean; write true or false"),
    ({"vm_agent": 2}, "vm_agent: 2 is not a boolean"),
    ({"vm_disks": [{"type": "file", "readonly": "sometimes"}]}, "vm_disks.0..readonly: 'sometimes' is not a boolean"),
    ({"vm_max_memory": "512MiB"}, "web1: vm_max_memory=512MiB is less than the memory of 1GiB"),
    ({"vm_min_memory": "2GiB"}, "web1: vm_min_memory=2GiB is more than the memory of 1GiB"),
    ({"vm_vcpus": 4, "vm_max_vcpus": 2}, "web1: vm_max_vcpus=2 is less than the 4 vCPUs"),
    ({"vm_disks": [{"type": "file", "target": "vda"}] * 2}, "web1: vm_disks: vda is in the list twice"),
    ({"vm_vcpus": 4, "vm_cpu_topology": {"cores": 3}}, "web1: vm_vcpus=4 does not fit the VM's CPU topology of 3 per"),
    ({"vm_max_vcpus": 8, "vm_cpu_topology": {"sockets": 1, "cores": 2}}, "web1: vm_max_vcpus=8 does not fit"),
    ({"vm_disks": [{"type": "iscsi", "user": "a", "secret": ""}]}, "vm_disks.0.: user and secret go together"),
    ({"vm_disks": [{"type": "iscsi", "bus": "scsi", "queues": 2}]}, "vm_disks.0.: queues are for the bus virtio"),
    ({"vm_disks": [{"type": "iscsi", "rotation_rate": 1}]}, "vm_disks.0.: rotation_rate is for disks on the buses"),
    ({"vm_disks": [{"type": "iscsi", "device": "cdrom", "bus": "virtio"}]}, "vm_disks.0.: a cdrom can't be on"),
    ({"vm_nics": [{"bridge": "br0", "model": "e1000", "queues": 2}]}, "vm_nics.0.: queues are for the model virtio"),
    ({"vm_boot": ["disk"], "vm_nics": [{"bridge": "br0", "boot_order": 1}]}, "vm_boot and boot_order don't go"),
    ({"vm_hostdevs": [{"type": "pci", "adress": "03:00.0"}]}, "vm_hostdevs.0.: there is no option adress"),
    ({"vm_hostdevs": [{"type": "usb", "vendor": 83, "product": "c52b"}]}, "in quotes"),
    ({"vm_filesystems": ["/srv"]}, "vm_filesystems: write a list of dictionaries"),
    ({"vm_machine": "Q35"}, "vm_machine: 'Q35' is not a machine type"),
]


@pytest.mark.parametrize("variables,words", MISTAKES)
def test_mistakes_are_named(variables, words):
    with pytest.raises(Invalid, match=words):
        vm_sheet({**WEB, "vm_memory": "1GiB", "vm_vcpus": 1, **variables})


@pytest.mark.parametrize("value", [True, "yes", "On", 1, "1", "false", "no", 0])
def test_what_ansible_takes_for_a_boolean_is_one(value):
    sheet = vm_sheet({**WEB, "vm_autostart": value, "vm_agent": value, "vm_tpm": 2.0, "vm_max_memory": "1GiB"})
    assert sheet["autostart"] is (value in (True, "yes", "On", "1")) and sheet["agent"] == value


GROUP: dict[str, Any] = {
    **WEB,
    "vm_profile": "large",
    "vm_cloud_init": {"hostname": "new"},
    "vm_disks": [{"type": "iscsi"}],
    "vm_nics": [{"bridge": "br0"}],
    "vm_watchdog": {"model": "i6300esb"},
    "vm_rbd_user": "drover",
}


def test_the_variables_of_an_adopted_vm_win_over_those_of_its_groups():
    disks = [
        {"type": "iscsi", "target": "vda", "iqn": "iqn.2020-01.x:old", "portal": "10.1.1.1:3260", "size": 20 * GIB},
        {"type": "rbd", "target": "vdb", "pool": "p", "image": "i"},
    ]
    sheet = {"name": "web1", "memory": GIB, "vcpus": 1, "disks": disks, "state": "stopped", "autostart": False}
    own = vm_variables(sheet)
    assert own["vm_memory"] == "1GiB" and own["vm_disks"][0]["size"] == "20GiB" and "vm_name" not in own
    assert [own[f"vm_{name}"] for name in ("profile", "cloud_init", "nics", "iscsi_user", "watchdog")] == [None] * 5
    assert set(GROUP) - set(own) == {"inventory_hostname", "ansible_host", "guest_address"}
    back = vm_sheet({**GROUP, **json.loads(json.dumps(own))})
    assert back == {**sheet, "disks": [{**disks[0], "size": "20GiB"}, disks[1]]}
    assert sheet["disks"][0]["size"] == 20 * GIB
    bare = vm_variables({name: value for name, value in sheet.items() if name != "disks"})
    assert "disks" not in vm_sheet({**GROUP, **bare}) and bare["vm_disks"] is None
    assert list(Variables().filters()) == ["vm_variables"]


@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{% raw %}", "a {# b"])
def test_a_text_that_would_be_a_template_is_refused(text):
    with pytest.raises(Invalid, match="web1: its title, description or another text holds {{"):
        vm_variables({"name": "web1", "disks": [{"type": "file", "path": text}]})


def test_the_filters_have_their_names_and_need_no_ansible():
    assert list(Sheets().filters()) == ["vm_sheet"] and list(Volumes().filters()) == ["iscsi_volumes"]
    code = (
        "import sys; import ansible_collections.drover.kvm.plugins.filter.vm_sheet;"
        "print([name for name in sys.modules if name == 'ansible' or name.startswith(('ansible.', 'libvirt'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={
        "PYTHONPATH": ":".join(sys.path)
    })  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("page", sorted(FILTERS.glob("*.yml")), ids=lambda page: page.name)
def test_what_a_filter_shows_is_yaml(page):
    parts = list(yaml.safe_load_all(yaml.safe_load(page.read_text(encoding="utf-8"))["EXAMPLES"]))
    assert parts and all(isinstance(part, (dict, list)) for part in parts)


def test_the_options_of_a_disk_are_listed_once():
    with pytest.raises(Invalid) as refused:
        vm_sheet({**WEB, "vm_disks": [{"type": "iscsi", "@": 1}]})
    listed = str(refused.value).partition("there are ")[2].split(", ")
    assert {"user", "secret", "path"} < set(listed) and len(listed) == len(set(listed))
