# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab itself: what a story may rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab import cgroups
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import PROGRAM, STATE_ROOT, Lab
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.run import LabError
from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

OTHER = "drover-test-other"
UUID = "6a3c1a52-0f6e-4d6c-9a34-6a1f0c5f0001"
DOMAIN = f"""<domain type='qemu'><name>web1</name><uuid>{UUID}</uuid><memory unit='MiB'>96</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/shared/web1.img'/>
<target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><source bridge='br0'/><virtualport type='openvswitch'/><vlan><tag id='100'/></vlan>
<model type='virtio'/><rom enabled='no'/></interface><serial type='pty'/></devices></domain>"""
SWITCH = """ovs-vsctl --no-wait set Open_vSwitch . other_config:userspace-tso-enable=true
systemctl restart openvswitch-switch
ovs-vsctl --may-exist add-br br0 -- set bridge br0 datapath_type=netdev
ovs-vsctl --may-exist add-bond br0 bond0 nic1 nic2 lacp=active -- set port bond0 other_config:lacp-time=fast
ip link set nic1 up; ip link set nic2 up; ip link set br0 up"""

# The stories' process, while it has a lab.
STORY = """
import sys, time
sys.path.insert(0, sys.argv[1])
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import borrowed
lab = Lab(sys.argv[2])
with borrowed(lab):
    lab.up()
    print("up", flush=True)
    time.sleep(120)
"""


def traces(name: str) -> list[str]:
    """Everything on this host that belongs to a lab of that name."""
    found = [str(path) for path in Path("/run/netns").glob(f"{name}.*")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"drover-lab/{name}/" in line]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"/run/netns/{name}." in line]
    found += [str(tree) for tree in cgroups.hierarchies() if (tree / cgroups.PARENT / name).exists()]
    found += [str(path) for path in (STATE_ROOT / name, STATE_ROOT / f".{name}.lock") if path.exists()]
    found += [str(path) for path in Path("/run/systemd/nspawn/propagate").glob(f"{name}.*")]
    return found + [f"process {pid}" for pid in cgroups.members(name)]


def births(pids: list[int]) -> set[tuple[int, str]]:
    """Processes told apart from later ones with the same id: by the time when they began."""
    found = set()
    for pid in pids:
        if not cgroups.is_zombie(pid):
            words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            found.add((pid, words[19]))
    return found


@pytest.fixture
def other() -> Iterator[Lab]:
    """The name of a second lab, gone before and after."""
    Lab(OTHER).down()
    yield Lab(OTHER)
    Lab(OTHER).down()


def test_ansible_reaches_every_node(lab: Lab) -> None:
    ansible = Path(sys.executable).parent / "ansible"
    argv = [str(ansible), "-i", str(lab.inventory), "all", "-m", "ansible.builtin.ping"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(lab.machines)


def test_up_again_changes_nothing(lab: Lab) -> None:
    assert lab.up(prepared=lab.settings["prepared"]) is False


def test_up_mends_what_is_missing(lab: Lab) -> None:
    subprocess.run(["ip", "-n", lab.network.namespace("switch"), "link", "delete", "hv3-nic2"], check=True)
    assert lab.up(prepared=lab.settings["prepared"]) is True
    assert "hv3-nic2" in lab.network.links("switch")
    assert "hv3-nic2" in lab.network.vsctl("list-ifaces", "core").split()


def test_a_pulled_cable_has_no_carrier(lab: Lab) -> None:
    lab.ssh("hv1", "ip link set nic1 up")
    assert lab.cut("hv1", "nic1") is True
    assert lab.cut("hv1", "nic1") is False
    assert "NO-CARRIER" in lab.ssh("hv1", "ip link show nic1")
    assert lab.cuts("hv1") == {"nic1": "pulled"}
    assert lab.restore("hv1", "nic1") is True
    assert "NO-CARRIER" not in lab.ssh("hv1", "ip link show nic1")


def test_a_silent_cut_keeps_the_carrier_and_drops_everything(lab: Lab) -> None:
    lab.cut("san1", "mgmt0", silent=True)
    try:
        assert "LOWER_UP" in lab.network.links("san1")["mgmt0"]["flags"]
        assert lab.cuts("san1") == {"mgmt0": "silent"}
        assert lab.answers("san1")[0] is False
    finally:
        lab.restore("san1")
    lab.wait_ssh("san1")


def test_a_frozen_process_stops_and_goes_on(lab: Lab) -> None:
    pids = lab.freeze("hv1", "systemd-networkd")
    try:
        assert all(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T" for pid in pids)
    finally:
        assert lab.thaw("hv1", "systemd-networkd") == pids
    with pytest.raises(LabError, match="no process 'nosuch' on hv1"):
        lab.freeze("hv1", "nosuch")


def test_a_power_cut_leaves_no_process_and_power_brings_the_node_back(lab: Lab) -> None:
    lab.ssh("hv3", "sync; echo kept >/root/kept")
    before, boot = births(lab.machine("hv3").pids()), lab.ssh("hv3", "cat /proc/sys/kernel/random/boot_id")
    assert lab.power_off("hv3") is True
    assert not before & births([pid for pid, _birth in before])
    assert lab.status()["nodes"]["hv3"]["power"] == "off"
    assert lab.power_on("hv3") is True
    assert lab.ssh("hv3", "cat /root/kept") == "kept\n"
    assert lab.ssh("hv3", "cat /proc/sys/kernel/random/boot_id") != boot


def test_a_node_reboots_by_itself(lab: Lab) -> None:
    boot = lab.ssh("hv3", "cat /proc/sys/kernel/random/boot_id")
    lab.ssh("hv3", "reboot", check=False)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if lab.ssh("hv3", "cat /proc/sys/kernel/random/boot_id", check=False) not in ("", boot):
            return
        time.sleep(0.3)
    pytest.fail("hv3 did not come back")


def test_a_filesystem_is_filled_and_emptied(lab: Lab) -> None:
    with pytest.raises(LabError, match="no filesystem of its own"):
        lab.fill("hv1", "/srv")
    assert lab.fill("hv1", "/srv", size="2M") > 1 << 20
    assert "No space left" in lab.ssh("hv1", "dd if=/dev/zero of=/srv/more bs=4k count=9 2>&1 || true")
    assert lab.empty("hv1", "/srv") is True
    lab.ssh("hv1", "rm -f /srv/more; umount /srv")


def test_a_guest_counts_over_the_bond_and_the_observer_sees_it(lab: Lab) -> None:
    if not lab.settings["prepared"]:
        pytest.skip("needs prepared nodes")
    image = lab.state / "shared/shared/web1.img"
    Guests(lab.base).write_image(
        image, {"name": "web1", "ip": "10.231.100.21/24", "sink": "10.231.100.1:9000", "canary": "XYZZY"}
    )
    image.chmod(0o666)
    lab.ssh("hv1", SWITCH)
    (lab.machine("hv1").path("/root/web1.xml")).write_text(DOMAIN)
    lab.ssh("hv1", "virsh define /root/web1.xml")
    with Observer(lab) as watch:
        lab.ssh("hv1", "virsh start web1")
        watch.wait_word("web1", seconds=120)
        time.sleep(2)
        lab.ssh("hv1", "virsh destroy web1")
        watch.look_at_disk("web1", image)
        lab.ssh("hv1", "virsh start web1")
        again = time.monotonic()
        watch.wait_word("web1", after=again, seconds=120)
        # A whole host lost: what the guest had said is on its disk.
        lab.power_off("hv1")
        watch.look_at_disk("web1", image)
    lab.power_on("hv1")
    lab.ssh("hv1", "virsh undefine web1")
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    assert [place[0] for place in verdict.guests["web1"].where] == ["hv1"]
    assert verdict.guests["web1"].last > 20


def test_the_core_speaks_lacp(lab: Lab) -> None:
    if not lab.settings["prepared"]:
        pytest.skip("needs prepared nodes")
    # The node whose cable was mended: the core reads the new one.
    lab.ssh("hv3", SWITCH)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        shown = lab.network.appctl("lacp/show", "hv3-bond0")
        if shown.count("current attached") == 2:
            return
        time.sleep(0.5)
    pytest.fail(shown)


def test_down_leaves_nothing_and_two_labs_do_not_meet(lab: Lab, other: Lab) -> None:
    here = lab.ssh("hv1", "cat /proc/sys/kernel/random/boot_id")
    assert other.up() is True
    assert other.ssh("hv1", "cat /proc/sys/kernel/random/boot_id") != here
    before = births(cgroups.members(OTHER))
    assert len(before) > 20
    assert other.down() is True
    assert traces(OTHER) == []
    assert not before & births([pid for pid, _birth in before])
    assert other.down() is False
    assert lab.ssh("hv1", "cat /proc/sys/kernel/random/boot_id") == here


def test_a_lab_goes_down_with_the_stories_that_were_killed(other: Lab) -> None:
    argv = [sys.executable, "-c", STORY, str(ROOT.parents[2]), OTHER]
    story = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert story.stdout is not None
    with story:
        assert story.stdout.readline() == "up\n" and traces(OTHER)
        story.kill()
    wait_until(lambda: not (seen := traces(OTHER)) or str(seen), 60, "the end of the lab")


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 2.0, 3.0, 4.5])
def test_down_after_a_killed_up_leaves_nothing(other: Lab, seconds: float) -> None:
    argv = [sys.executable, str(PROGRAM), "--name", OTHER, "up"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    Lab(OTHER).down()
    assert traces(OTHER) == []


def test_up_after_a_killed_up_finishes_it(other: Lab) -> None:
    argv = [sys.executable, str(PROGRAM), "--name", OTHER, "up"]
    for seconds in (0.4, 0.9, 1.6):
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    Lab(OTHER).up()
    assert all(Lab(OTHER).answers(node)[0] for node in other.machines)
    assert Lab(OTHER).up() is False
