# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The different CPUs of a cluster's guests."""

from __future__ import annotations

from ansible_collections.drover.kvm.plugins.filter.guest_cpus import FilterModule


def domain(name, cpu, machine="pc-q35-10.0"):
    return {"name": name, "cpu": cpu, "virt_type": "kvm", "machine": machine}


def test_equal_cpus_are_asked_for_once_and_what_is_shut_off_has_none():
    hv1 = [domain("web2", "<a/>"), domain("db1", "<b/>"), domain("off1", None), domain("old1", "<a/>", "pc-q35-7.2")]
    hv2 = [domain("web1", "<a/>")]
    facts = [{"node": {"name": "hv1", "domains": hv1}}, {"name": "hv2", "domains": hv2}]
    assert FilterModule().filters()["guest_cpus"](facts) == [
        {"cpu": "<a/>", "virt_type": "kvm", "machine": "pc-q35-10.0", "host": False, "vms": ["web1", "web2"]},
        {"cpu": "<b/>", "virt_type": "kvm", "machine": "pc-q35-10.0", "host": False, "vms": ["db1"]},
        {"cpu": "<a/>", "virt_type": "kvm", "machine": "pc-q35-7.2", "host": False, "vms": ["old1"]},
    ]


def test_of_a_vm_that_sees_its_machine_s_cpu_that_cpu_is_compared():
    """libvirt takes the element of such a VM for a CPU that every machine has."""
    seen = "<cpu mode='host-passthrough' check='none' migratable='on'><feature policy='disable' name='vmx'/></cpu>"
    nodes = [
        {"name": name, "host_cpu": f"<{name}/>", "domains": [domain(f"{name}-a", seen)]} for name in ("hv1", "hv2")
    ]
    nodes[1]["domains"].append(domain("web1", "<cpu mode='custom'><!-- no host-passthrough --></cpu>"))
    found = FilterModule().filters()["guest_cpus"](nodes)
    assert [(kind["cpu"], kind["host"], kind["vms"]) for kind in found] == [
        ("<hv1/>", True, ["hv1-a"]),
        ("<hv2/>", True, ["hv2-a"]),
        ("<cpu mode='custom'><!-- no host-passthrough --></cpu>", False, ["web1"]),
    ]
