# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter keep_on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import PurePath
from typing import Any

# Storage, votes and files that others have from a node, by the names of Debian, Ceph and cephadm.
NEEDED = (
    "ceph-osd@*",
    "ceph-mon@*",
    "ceph-mds@*",
    "ceph-*@osd.*",
    "ceph-*@mon.*",
    "ceph-*@mds.*",
    "corosync.service",
    "etcd.service",
    "nfs-server.service",
    "nfs-ganesha.service",
    "drbd.service",
    "tgt.service",
    "smbd.service",
)


def keep_on(
    node: Mapping[str, Any],
    files: Iterable[str] = (),
    services: Mapping[str, Mapping[str, Any]] | None = None,
    ignored: Iterable[str] = (),
) -> list[str]:
    """In words, what speaks against switching the node (facts of node_info) off.

    `files` are process files of libvirt's QEMUs (*.pid) and units of moves (drover-*.service) that were found there,
    `services` those of ansible.builtin.service_facts, `ignored` patterns of services that may stop.
    """
    found = [f"it holds {one['name']}" for one in node.get("domains") or []]
    paths = sorted(map(PurePath, files))
    found += [f"a QEMU of {path.stem} runs" if path.suffix == ".pid" else f"{path.name} works" for path in paths]
    patterns = list(ignored)
    running = sorted(name for name, facts in (services or {}).items() if facts.get("state") == "running")
    needed = [name for name in running if any(fnmatch(name, pattern) for pattern in NEEDED)]
    loud = (name for name in needed if not any(fnmatch(name, pattern) for pattern in patterns))
    return [*found, *(f"{name} runs" for name in loud)]


class FilterModule:
    """The filter as Ansible finds it."""

    def filters(self) -> dict[str, object]:
        """Its name and its function."""
        return {"keep_on": keep_on}
