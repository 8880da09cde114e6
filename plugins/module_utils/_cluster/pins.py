# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes a VM may run on by the site's own word, said of the VM or of a tag that it has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .model import Cluster, Guest

Words = Mapping[str, frozenset[str]]


def bind(cluster: Cluster, wanted: Iterable[Guest], pins: Words, avoid: Words) -> Cluster:
    """The cluster with the nodes that each VM is pinned to; `wanted` are those that are to be placed.

    `pins` and `avoid` have nodes by the name of a VM or of a tag. All that is said of one VM holds at once, so that it
    may be left without a node.
    """
    said = {*pins, *avoid}
    if not said:
        return cluster
    names: dict[str, frozenset[str]] = {}
    for guest in (*cluster.guests, *wanted):
        names[guest.name] = names.get(guest.name, frozenset({guest.name})) | guest.tags
    bound = {vm: _nodes(cluster, words, pins, avoid) for vm, words in names.items() if words & said}
    return replace(cluster, rules=replace(cluster.rules, pins=bound))


def idle(cluster: Cluster, pins: Words, avoid: Words) -> tuple[str, ...]:
    """In words, what rules name and the cluster does not have: often a slip of the pen, and then no rule at all."""
    rules = cluster.rules
    tags = frozenset[str]().union(*(guest.tags for guest in cluster.guests))
    names = {*tags, *(guest.name for guest in cluster.guests)}
    nodes = frozenset(rules.failure_domains).union(*pins.values(), *avoid.values()) - cluster.nodes.keys()
    found = {"node": nodes}
    # One that gives no answer may hold what is missed.
    if all(node.reachable for node in cluster.nodes.values()):
        words = ({*pins, *avoid} - names) | ((rules.anti_affinity | rules.affinity) - tags)
        found["VM and no tag of a VM"] = frozenset(words)
    return tuple(f"a rule names {word}, which is no {kind}" for kind in found for word in sorted(found[kind]))


def _nodes(cluster: Cluster, words: frozenset[str], pins: Words, avoid: Words) -> frozenset[str]:
    allowed = [pins[word] for word in words & pins.keys()]
    shunned = [avoid[word] for word in words & avoid.keys()]
    return frozenset.intersection(*(allowed or [frozenset(cluster.nodes)])).difference(*shunned)
