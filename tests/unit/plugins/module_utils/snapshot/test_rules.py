# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kind a snapshot is of, and in which order several of them go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused
from ansible_collections.drover.kvm.plugins.module_utils._snapshot import choose, removing

DISK = {"target": "vda", "device": "disk", "readonly": False, "format": "qcow2", "identity": "file:/srv/web1.qcow2"}
FACTS = {"name": "web1", "state": "running", "disks": [DISK], "state_files": []}


@pytest.mark.parametrize("asked", ["auto", "internal", "external"])
def test_where_both_kinds_are_no_more_is_made(asked: str) -> None:
    with pytest.raises(Refused, match="web1 has internal and external snapshots"):
        choose.choose(FACTS, True, asked, {"internal", "external"}, None)


def test_what_a_volume_of_a_san_lacks_is_named_as_module_and_playbook_call_it() -> None:
    facts = {**FACTS, "disks": [{**DISK, "type": "iscsi", "format": "raw", "identity": "iscsi:iqn.2026-01.org:web1/1"}]}
    with pytest.raises(Refused, match=r"say directory \(in playbooks drover_snapshot_directory\)"):
        choose.choose(facts, False, "auto", set(), None)
    assert choose.choose(facts, False, "auto", set(), "/var/lib/libvirt/snapshots") == "external"


def machine(current: str, kind: str = "external", **parents: Any) -> Any:
    """A VM with snapshots, the oldest first, each with its parent."""
    there = {
        name: SimpleNamespace(name=name, kind=kind, parent=parent, current=name == current)
        for name, parent in parents.items()
    }
    volumes = SimpleNamespace(check_drop=lambda name: None)
    return SimpleNamespace(name="web1", snapshots=there, volumes=volumes)


def test_the_oldest_goes_first() -> None:
    chain = machine("s3", s1=None, s2="s1", s3="s2")
    assert removing.order(chain, ["s3", "s1", "s2"]) == ["s1", "s2", "s3"]
    assert removing.order(chain, ["s2"]) == ["s2"] and removing.order(chain, []) == []
    assert removing.order(chain, ["gone"]) == []


def test_the_ground_of_several_branches_goes_after_them() -> None:
    # Set back to s1, so that s2 and what runs now both stand on it.
    branched = machine("s1", s1=None, s2="s1", s3="s2")
    assert removing.order(branched, ["s1", "s2", "s3"]) == ["s2", "s3", "s1"]
    with pytest.raises(Refused, match="s1 of web1 is the ground of s3 and of what runs now; remove s3 first"):
        removing.order(branched, ["s1", "s2"])
    # In one disk each stands by itself.
    inside = machine("s1", "internal", s1=None, s2="s1")
    assert removing.order(inside, ["s1", "s2"]) == ["s1", "s2"]
