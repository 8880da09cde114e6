# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Save the files and what NICs had from others, and put exactly these back.

This is also the program that a timer starts when nobody confirms a change: no Ansible here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .. import _lifelines
from .._networkctl import Networkd
from .._rollback import claim
from . import apply

Saved = dict[str, Any]


def save(client: Networkd, before: Mapping[str, str], taken: Iterable[str]) -> Saved:
    """Our files, and of the NICs that are taken over now the addresses and routes that networkd does not know."""
    managed = client.managed()
    bare = [name for name in taken if not managed.get(name, {}).get("NetworkFile")]
    given: Saved = {name: {"addresses": [], "routes": []} for name in bare}
    for link in _lifelines.addresses():
        if link.get("ifname") in given:
            found = [f"{item['local']}/{item['prefixlen']}" for item in link["addr_info"] if item["scope"] == "global"]
            given[link["ifname"]]["addresses"] = found
    for route in _lifelines.routes():
        if route.get("dev") in given and route.get("gateway"):
            words = [route["dst"], "via", route["gateway"], "dev", route["dev"]]
            given[route["dev"]]["routes"].append(
                [*words, *(["metric", str(route["metric"])] if "metric" in route else [])]
            )
    return {"files": dict(before), "given": given}


def restore(client: Networkd, saved: Saved) -> bool:
    """Put them back."""
    old = saved["files"]
    links = [apply.link_of(name) for name in old if name.endswith(".network")]
    apply.apply(client, old, apply.remade(client.files(), old), links)
    for link, has in saved["given"].items():
        client.give(link, has["addresses"], has["routes"])
    client.end()
    return True


def taken_back(saved: Saved) -> bool:
    """Restore on this machine."""
    return restore(Networkd(), saved)


def words(_saved: Saved, _done: bool) -> str:
    """What is said at the end."""
    return "the network of the host is as before"


def main(argv: list[str]) -> None:
    """Restore from the file `argv[1]`."""
    claim.take_back(argv, taken_back, words)
