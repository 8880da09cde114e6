# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against switching a node off."""

from __future__ import annotations

from ansible_collections.drover.kvm.plugins.filter.keep_on import FilterModule, keep_on

EMPTY = {"name": "hv3", "domains": []}


def test_an_empty_node_that_nobody_needs_can_go():
    services = {"ssh.service": {"state": "running"}, "ceph-osd@3.service": {"state": "stopped"}}
    assert keep_on(EMPTY) == keep_on(EMPTY, [], services) == [] and list(FilterModule().filters()) == ["keep_on"]


def test_vms_processes_and_moves_keep_it_on():
    files = ["/run/systemd/transient/drover-migrate-1.service", "/run/libvirt/qemu/db.eu.pid"]
    assert keep_on({"domains": [{"name": "off1", "state": "stopped"}]}, files) == [
        "it holds off1",
        "a QEMU of db.eu runs",
        "drover-migrate-1.service works",
    ]


def test_what_others_need_keeps_it_on_unless_it_is_ignored():
    names = ["ceph-osd@1.service", "ceph-0a1b@osd.3.service", "ceph-mon@hv3.service", "nfs-server.service"]
    services = {name: {"state": "running"} for name in [*names, "cron.service"]}
    assert keep_on(EMPTY, [], services) == [f"{name} runs" for name in sorted(names)]
    assert keep_on(EMPTY, [], services, ["ceph-*", "nfs-server.service"]) == []
