# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node lacks after its maintenance."""

from __future__ import annotations

from ansible_collections.drover.kvm.plugins.filter.node_faults import node_faults

WELL = {
    "memory": {"total": 64 * 2**30},
    "bridges": [{"name": "br0"}, {"name": "br1"}],
    "pools": [{"name": "images", "state": "active"}, {"name": "old", "state": "inactive"}],
    "virt_types": ["kvm", "qemu"],
}


def test_a_node_that_is_as_it_was_has_no_fault():
    more = {**WELL, "bridges": [*WELL["bridges"], {"name": "br2"}], "memory": {"total": 63 * 2**30}}
    assert node_faults(more, WELL) == node_faults(WELL) == node_faults(WELL, {}) == []


def test_what_is_gone_is_named():
    now = {
        "memory": {"total": 48 * 2**30},
        "bridges": [{"name": "br1"}],
        "pools": [{"name": "images", "state": "inactive"}],
        "virt_types": ["qemu"],
    }
    assert node_faults(now, WELL) == [
        "bridge br0 is gone",
        "active pool images is gone",
        "virtualisation type kvm is gone",
        "it has 48 GiB of memory, and had 64",
    ]


def test_a_failed_service_is_named_unless_it_is_ignored():
    services = {
        "ssh.service": {"state": "running", "status": "enabled"},
        "smartd.service": {"state": "failed", "status": "failed"},
        "chrony.service": {"state": "stopped", "status": "failed"},
    }
    assert node_faults({}, {}, services) == ["chrony.service has failed", "smartd.service has failed"]
    assert node_faults({}, {}, services, ["smart*"]) == ["chrony.service has failed"]
