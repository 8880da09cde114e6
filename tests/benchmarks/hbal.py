# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hbal (Debian package ganeti-htools) plans for a cluster of ours, from its text format (man hbal, option -t)."""

from __future__ import annotations

import re
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.drover.kvm.plugins.module_utils._cluster.model import Cluster

MIB = 2**20
MOVE = re.compile(r"^ *\d+\. (\S+) +(\S+) +=> (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """Its moves (VM, to) in their order, the CPU seconds of the whole process, and its score of the cluster as given.

    The score is what it makes small: standard deviations of memory and vCPUs, VMs that are not kept apart, and others.
    """

    moves: tuple[tuple[str, str], ...]
    seconds: float
    score: float

    def where(self, cluster: Cluster) -> dict[str, str]:
        """The node of each VM after its moves."""
        return {**{guest.name: guest.node for guest in cluster.guests}, **dict(self.moves)}


def text(cluster: Cluster, offline: str = "") -> str:
    """The cluster in its words: the overhead of a VM is part of its memory, the reserve is the node's own."""
    rules, nodes, used = cluster.rules, [], dict.fromkeys(cluster.nodes, 0)
    instances = []
    for guest in cluster.guests:
        used[guest.node] += cluster.need(guest)
        tags = ",".join(f"apart:{tag}" for tag in sorted(cluster.groups(guest)))
        size = cluster.need(guest) // MIB
        instances.append(f"{guest.name}|{size}|1|{guest.vcpus}|running|Y|{guest.node}||ext|{tags}|1")
    for name, node in cluster.nodes.items():
        total, free = node.memory // MIB, (cluster.capacity(name) - used[name]) // MIB
        off = "Y" if name == offline else "N"
        head = f"{name}|{total}|{rules.reserve // MIB}|{free}|1000000|1000000|{node.threads}"
        nodes.append(f"{head}|{off}|uuid-g|1||N|1|0|1.0")
    parts = [["all|uuid-g|preferred||"], nodes, instances, ["htools:iextags:apart"]]
    return "\n\n".join("\n".join(part) for part in parts) + "\n\n"


def hbal(cluster: Cluster, folder: Path, *options: str, offline: str = "") -> Answer:
    """Run it. Utilisation that is not given counts as equal for all VMs, which is not the question here."""
    data = folder / "cluster.data"
    data.write_text(text(cluster, offline), encoding="utf-8")
    argv = ["hbal", "-t", str(data), "--ignore-dynu", "--max-cpu", "1000", *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500, check=False)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.returncode == 0 and "Loaded" in done.stdout, done.stdout + done.stderr
    score = re.search(r"Initial score: ([\d.]+)", done.stdout)
    moves = tuple((vm, target) for vm, _source, target in MOVE.findall(done.stdout))
    return Answer(moves, seconds, float(score.group(1)) if score else 0.0)
