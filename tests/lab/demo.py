# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on the embedded lab, from bare nodes to VMs that came home; prints what happened (``make demo``)."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, Played, wait_until
from ansible_collections.drover.kvm.tests.lab.judge import Verdict
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODE = "hv1"


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    print(f"{text:<62}", end="", flush=True)
    begin = time.monotonic()
    yield
    print(f"{time.monotonic() - begin:6.1f} s", flush=True)


def play(cluster: Cluster, playbook: str, **variables: str) -> Played:
    """Run a playbook of the collection; end the demo with its output when it fails."""
    played = cluster.play(playbook, **variables)
    if played.code != 0:
        sys.exit(f"\n{playbook} failed:\n{played.output}")
    return played


def again(cluster: Cluster, playbook: str, **variables: str) -> None:
    """Run a playbook a second time: it must find nothing to do."""
    with step(f"  {playbook} again"):
        played = play(cluster, playbook, **variables)
    if played.changed:
        sys.exit(f"\nthe second run of {playbook} changed {played.changed} things:\n{played.output}")


def maintenance(cluster: Cluster, watch: Observer) -> list[dict[str, str]]:
    """Empty a node, switch it off and on, fill it again; where every VM was before, during and after."""
    places = [cluster.where()]
    with step(f"drain {NODE}: its VMs move away and run on"):
        play(cluster, "drain_node", node=NODE)
    places.append(cluster.where())
    again(cluster, "drain_node", node=NODE)
    with step(f"pull the plug of {NODE}, and plug it in again"):
        cluster.lab.power_off(NODE)
        cluster.lab.power_on(NODE)
        wait_until(lambda: "active" in cluster.ssh(NODE, "systemctl", "is-active", "ssh", check=False), 60, NODE)
    with step(f"undrain {NODE}: its VMs come home"):
        play(cluster, "undrain_node", node=NODE)
    places.append(cluster.where())
    again(cluster, "undrain_node", node=NODE)
    now = time.monotonic()
    for name in places[0]:
        watch.wait_word(name, after=now)
    return places


def report(places: list[dict[str, str]], verdict: Verdict) -> int:
    """Print the table; the exit status."""
    before, during, after = places
    guests = verdict.guests
    print(f"\n{'VM':<8}{'before':<8}{'drained':<9}{'after':<8}{'counter':<16}longest silence")
    for name in sorted(before):
        guest = guests[name]
        row = f"{name:<8}{before[name]:<8}{during.get(name, '-'):<9}{after.get(name, '-'):<8}"
        print(f"{row}{f'{guest.first}-{guest.last}':<16}{guest.gap_ms / 1000:.2f} s")
    moved = [guests[name].gap_ms for name in before if before[name] == NODE]
    if moved:
        print(f"\nmoved twice: median silence {statistics.median(moved):.0f} ms, longest {max(moved)} ms")
    print("no VM ran twice, no counter went back" if verdict.ok else str(verdict))
    home = before == after and NODE not in during.values()
    if not home:
        print(f"not all VMs are where they belong: {before} -> {during} -> {after}")
    return 0 if verdict.ok and home else 1


def main() -> int:
    """Run the demo; 0 when everything held."""
    lab = Lab("drover")
    begin = time.monotonic()
    with step("lab: three hypervisors, a SAN and a core switch"):
        lab.up()
    cluster = Cluster(lab)
    with step("images of six guests, put on the SAN"):
        cluster.write_images()
    with step("site: network, SAN, libvirt, certificates (bare Debian)"):
        play(cluster, "site")
    again(cluster, "site")
    with step("build_vms: six VMs on iSCSI volumes"):
        play(cluster, "build_vms")
    again(cluster, "build_vms")
    with Observer(lab) as watch:
        with step("all six guests count"):
            for name in cluster.sheets():
                watch.wait_word(name)
        places = maintenance(cluster, watch)
    code = report(places, watch.verdict())
    print(f"\nin all {time.monotonic() - begin:.0f} s. Look around, then take it down:")
    state = lab.state
    print(f"  ssh -F {state}/ssh_config {NODE} virsh list --all")
    print(f"  samples of the observer: {watch.out}")
    print("  make lab-down")
    return code


if __name__ == "__main__":
    sys.exit(main())
