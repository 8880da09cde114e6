# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook site, after a run that was killed between the writing of files and what reads them."""

from __future__ import annotations

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster

NODE = "hv1"


def test_what_a_killed_run_wrote_is_read_after_the_next(site: Cluster) -> None:
    files = "/etc/libvirt/qemu.conf /etc/drover/firewall.nft /usr/local/lib/drover/port-guard"
    units = "libvirtd drover-firewall drover-port-guard"
    started = f"systemctl show --property=StateChangeTimestampMonotonic --value {units}"
    before = site.lab.ssh(NODE, f"virsh list >/dev/null; {started}; touch {files}").split()
    setup = ("site", "--limit", NODE, "--tags", "hypervisor,open_vswitch")
    assert [site.play(*setup, "--check").good().changed, site.play(*setup).good().changed] == [3, 3]
    after = site.lab.ssh(NODE, started).split()
    assert all(int(now) > int(then) for then, now in zip(before, after)), (before, after)
    assert site.play(*setup).good().changed == 0


def test_a_guard_that_a_cut_run_took_half_away_is_taken_away_by_the_next(site: Cluster) -> None:
    unit, program = "drover-port-guard.service", "/usr/local/lib/drover/port-guard"
    setup = ("site", "--limit", NODE, "--tags", "open_vswitch")
    site.lab.ssh(NODE, f"systemctl disable --now {unit} && rm /etc/systemd/system/{unit} && systemctl daemon-reload")
    assert site.play(*setup, open_vswitch_port_guard=False).good().changed
    assert site.lab.ssh(NODE, f"ls {program} /etc/systemd/system/{unit} 2>/dev/null", check=False).strip() == ""
    assert site.play(*setup, open_vswitch_port_guard=False).good().changed == 0
    assert site.play(*setup).good().changed
    assert site.lab.ssh(NODE, f"systemctl is-active {unit}").strip() == "active"
    assert site.play(*setup).good().changed == 0
