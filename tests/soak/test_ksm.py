# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KSM by role hypervisor, on a node with a kernel of its own: that of a container would be this machine's.

Each test goes on from the one before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, Played, example_lab, wait_until
from ansible_collections.drover.kvm.tests.soak.test_block_disks import BOOT_ID, BOOT_SECONDS, do

SITE = Path(__file__).with_name("ksm")
NODE = "hv1"
FOLDER, FILE = "/sys/kernel/mm/ksm", "/etc/tmpfiles.d/drover-ksm.conf"
KSM = {"run": 1, "pages_to_scan": 2000, "max_page_sharing": 128}
# At boot, and as asked for.
BOOTED = {"run": "0", "pages_to_scan": "100", "max_page_sharing": "256"}
ASKED = {name: str(value) for name, value in KSM.items()}
# Their firmware finds nothing to boot, and stays in memory.
GUEST: dict[str, Any] = {"memory": "32MiB", "vcpus": 1, "machine": "pc"}
GUESTS = ("web1", "web2")
# How many mappings of a VM's QEMU the kernel may merge, see proc_pid_smaps(5).
MERGEABLE = "grep -cw mg /proc/$(cat /run/libvirt/qemu/{}.pid)/smaps || true"
SECONDS = 300
# A service of this name, and nothing else of it.
RIVAL = """cat >/etc/systemd/system/ksmtuned.service <<END
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
END
systemctl daemon-reload; systemctl start ksmtuned"""


@pytest.fixture(scope="module")
def node() -> Iterator[Cluster]:
    """One hypervisor."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-ksm"), SITE) as found:
        # Emulated and busy, its libvirt takes longer to start than a module waits for it.
        wait_until(lambda: "qemu" in found.ssh(NODE, "virsh uri", check=False, timeout=300), 300, "libvirt answers")
        yield found


def role(node: Cluster, *options: str, **ksm: Any) -> Played:
    """The role with these settings, which says first what is wrong with them."""
    return node.play(str(SITE / "site.yml"), "--tags", "hypervisor_ksm", *options, hypervisor_ksm=ksm)


def settings(node: Cluster) -> dict[str, str]:
    """What the kernel goes by."""
    said = node.ssh(NODE, f"cd {FOLDER} && cat {' '.join(BOOTED)}", timeout=120).split()
    return dict(zip(BOOTED, said))


def merged(node: Cluster) -> int:
    """Bytes, as module node_info has them."""
    found = do(node, NODE, "node_info", cpus=[])["node"]["memory"]["merged"]
    assert isinstance(found, int)
    return found


def pages(node: Cluster) -> int:
    """How many pages stand for others, as the kernel says."""
    return int(node.ssh(NODE, f"cat {FOLDER}/pages_sharing", timeout=120))


def wait_merged(node: Cluster) -> None:
    """Until the kernel has found equal pages."""
    wait_until(lambda: pages(node) > 0 or "nothing is merged", SECONDS, "pages are merged")


def test_it_is_off_and_is_switched_on_as_foretold(node: Cluster) -> None:
    assert settings(node) == BOOTED and role(node).good().changed == 0
    foretold = node.task(NODE, "ksm", check=True, **KSM)
    told = role(node, "--check", "--diff", **KSM).good()
    assert told.changed == 1 and "2000" in told.output and settings(node) == BOOTED
    assert node.ssh(NODE, "ls", FILE, check=False) == ""
    assert role(node, **KSM).good().changed == 1 and settings(node) == ASKED
    assert foretold["ksm"] == do(node, NODE, "ksm", **KSM)["ksm"] and foretold["ksm"]["file"]
    assert role(node, **KSM).good().changed == 0


def test_equal_pages_of_two_guests_are_merged_and_those_of_a_third_are_not(node: Cluster) -> None:
    for name in GUESTS:
        do(node, NODE, "vm", name=name, state="running", autostart=True, **GUEST)
    wait_merged(node)
    assert merged(node) > 0
    do(node, NODE, "vm", name="vault1", state="running", nosharepages=True, **GUEST)
    assert not do(node, NODE, "vm", name="vault1", state="running", nosharepages=True, **GUEST)["changed"]
    counts = [int(node.ssh(NODE, MERGEABLE.format(name), timeout=120)) for name in ("web1", "vault1")]
    assert counts[0] > 0 and counts[1] == 0
    do(node, NODE, "vm", name="vault1", state="absent", force=True)


def test_what_is_no_value_is_refused_before_anything_is_set(node: Cluster) -> None:
    role(node, run=3).refused("run", "0, 1, 2")
    role(node, run=1, max_page_sharing=1).refused("max_page_sharing: 1 is out of range")
    role(node, run=1, pages=1).refused("hypervisor_ksm.pages")
    assert settings(node) == ASKED


def test_another_service_that_sets_it_is_named(node: Cluster) -> None:
    node.ssh(NODE, RIVAL, timeout=120)
    role(node, run=2).refused("ksmtuned.service would set KSM too")
    assert settings(node) == ASKED
    node.ssh(NODE, "systemctl stop ksmtuned; rm /etc/systemd/system/ksmtuned.service; systemctl daemon-reload")
    assert role(node, **KSM).good().changed == 0


def test_how_many_may_share_a_page_changes_while_pages_are_merged(node: Cluster) -> None:
    wait_merged(node)
    assert role(node, **{**KSM, "max_page_sharing": 64}).good().changed == 1
    assert settings(node) == {**ASKED, "max_page_sharing": "64"}
    wait_merged(node)
    assert role(node, **KSM).good().changed == 1 and settings(node) == ASKED


def test_it_is_on_after_a_reboot(node: Cluster) -> None:
    boot = node.ssh(NODE, BOOT_ID, timeout=120)
    # Their firmware heeds no power button, and libvirt-guests would wait for each of them for five minutes.
    off = "; ".join(f"virsh destroy {name}" for name in GUESTS)
    node.ssh(NODE, f"{off}; reboot", check=False, timeout=120)

    def back() -> bool | str:
        said = node.ssh(NODE, f"{BOOT_ID}; cat {FOLDER}/run", check=False, timeout=120).split()
        return (said[:1] != boot.split() and said[1:] == ["1"]) or str(said)

    wait_until(back, BOOT_SECONDS, "the node is back")
    assert settings(node) == ASKED and role(node, **KSM).good().changed == 0
    # The guests start with the node.
    wait_merged(node)


def test_it_is_taken_back_and_nothing_is_left(node: Cluster) -> None:
    assert role(node, "--check").good().changed == 1 and pages(node) > 0
    assert role(node).good().changed == 1
    assert pages(node) == 0 and settings(node) == BOOTED and node.ssh(NODE, "ls", FILE, check=False) == ""
    assert role(node).good().changed == 0 and set(node.domains(NODE).values()) == {"running"}
    for name in GUESTS:
        do(node, NODE, "vm", name=name, state="absent", force=True)
