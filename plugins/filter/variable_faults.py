# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter variable_faults: names of variables that nothing of this collection reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.plugins.plugin_utils._sightings import FACTS, RECORD

ROOT = Path(__file__).resolve().parents[2]
# Those of the playbooks, and of the roles that playbook `site` has.
OURS = ("drover", "hypervisor", "open_vswitch", "linux_bridge", "san_initiator", "san_target", "ceph_client")
WORD = re.compile(rf"\b(?:{'|'.join(OURS)})_\w+", re.ASCII)
# A name whose rest is as near as this to that of one that is right was meant to be that one.
NEAR = 0.7
SHOWN = 3


def variable_faults(hosts: Iterable[Mapping[str, Any]], own: Iterable[str] = ()) -> list[str]:
    """One text for each name in the variables of hosts that is like one of ours and is none; `own` are the site's own.

    The names are read from what is installed: the roles' argument_specs and all that playbooks and roles mention.
    """
    documented, mentioned = _names()
    fine = {*documented, *mentioned, *own}
    found: dict[str, list[str]] = {}
    for host in hosts:
        for name in sorted(name for name in host if WORD.fullmatch(name)):
            if name not in fine:
                found.setdefault(name, []).append(str(host.get("inventory_hostname", "")))
    return [f"{name} (of {_some(of)}){_near(name, documented)}" for name, of in sorted(found.items())]


def _near(name: str, names: Iterable[str]) -> str:
    begin = next(f"{ours}_" for ours in OURS if name.startswith(f"{ours}_"))
    rests = sorted(other[len(begin) :] for other in names if other.startswith(begin))
    near = difflib.get_close_matches(name[len(begin) :], rests, n=1, cutoff=NEAR)
    return f": {begin}{near[0]} may be meant" if near else ""


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


@lru_cache(maxsize=1)
def _names() -> tuple[frozenset[str], frozenset[str]]:
    """The names that a site may set, and all that are mentioned anywhere."""
    found = {f"drover_{name}" for name in (*FACTS, *RECORD)}
    specs = [name for text in _texts("roles/*/meta/argument_specs.yml") for name in WORD.findall(text)]
    heads = [line for text in _texts("playbooks/*.yml") for line in text.splitlines() if line.startswith("#")]
    documented = {*specs, *(name for line in heads for name in WORD.findall(line))}
    for pattern in ("playbooks/**/*.yml", "roles/*/*/*.yml", "roles/*/templates/*", "plugins/inventory/*.py"):
        found |= {name for text in _texts(pattern) for name in WORD.findall(text)}
    return frozenset(documented), frozenset(found)


def _texts(pattern: str) -> Iterator[str]:
    return (path.read_text(encoding="utf-8") for path in sorted(ROOT.glob(pattern)) if path.is_file())


class FilterModule:
    """The filter as Ansible finds it."""

    def filters(self) -> dict[str, object]:
        """Its name and its function."""
        return {"variable_faults": variable_faults}
