# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether full packets arrive: pings that may not be fragmented, as large as the machine's own interface allows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from typing import Any

from ._errors import Failed
from ._run import run, run_json

# Of IP and ICMP together: RFC 791 and RFC 792, RFC 8200 and RFC 4443.
HEADERS = {4: 28, 6: 48}
# What links are set to: IPv6's least, tunnels, PPPoE, Ethernet, jumbo frames of several makes. The last one that
# arrives names the link that is at fault better than a figure found by halving would.
USUAL = (576, 1280, 1400, 1450, 1492, 1500, 4000, 8900, 8950, 9000)
PINGS, APART = 3, 0.2  # one answer is enough; the first packet may be lost to ARP
AT_ONCE = 32


def check_address(value: str) -> str:
    """An IPv4 or IPv6 address; ValueError says the rule."""
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is no IP address; write one such as 10.0.6.12 or 2001:db8:6::12") from None


def paths(addresses: Sequence[str], mtu: int | None, seconds: float) -> list[dict[str, Any]]:
    """How far packets get to each address, in the order given; all are asked at once.

    `mtu` is the packets' size in bytes with the headers of IP (None: the MTU of the interface that the route takes),
    `seconds` how long one answer may take.
    """
    if not addresses:
        return []
    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(addresses))) as pool:
        return list(pool.map(partial(_path, mtu=mtu, seconds=seconds), addresses))


def _path(address: str, mtu: int | None, seconds: float) -> dict[str, Any]:
    path: dict[str, Any] = {"to": address, "interface": None, "source": None, "mtu": mtu, "largest": None, "ok": False}
    try:
        route = run_json(["ip", "-json", "route", "get", address])[0]
    except Failed as error:
        return {**path, "message": f"{address}: no route: {error.details['stderr']}"}
    path["interface"], path["source"] = route["dev"], route.get("prefsrc")
    if route["dev"] == "lo":
        return {**path, "ok": True, "message": f"{address}: an address of this machine"}
    size = path["mtu"] = mtu or route.get("mtu") or _mtu(route["dev"])
    if _arrives(address, size, seconds):
        return {**path, "largest": size, "ok": True, "message": f"{address}: packets of {size} bytes arrive"}
    path["largest"] = _largest(address, [usual for usual in USUAL if usual < size], seconds)
    # Where nothing was heard at first and then something, the neighbour was asleep, or busy: only size may be to blame.
    if path["largest"] and _arrives(address, size, seconds):
        return {**path, "largest": size, "ok": True, "message": f"{address}: packets of {size} bytes arrive"}
    way = f"{address} by {route['dev']}"
    if path["largest"] is None:
        return {**path, "message": f"{way}: no answer, whatever the size"}
    own = _mtu(route["dev"])
    blame = "a link on the way has a smaller MTU" if size <= own else f"{route['dev']} itself has the MTU {own}"
    words = f"packets of {size} bytes get lost, of {path['largest']} arrive: {blame}"
    return {**path, "message": f"{way}: {words}"}


def _mtu(device: str) -> int:
    return int(run_json(["ip", "-json", "link", "show", "dev", device])[0]["mtu"])


def _largest(address: str, sizes: Sequence[int], seconds: float) -> int | None:
    with ThreadPoolExecutor(max_workers=len(USUAL)) as pool:
        arrived = pool.map(lambda size: _arrives(address, size, seconds), sizes)
        return max((size for size, there in zip(sizes, arrived) if there), default=None)


def _arrives(address: str, size: int, seconds: float) -> bool:
    version = ip_address(address).version
    words = ["ping", f"-{version}", "-n", "-q", "-M", "do", "-c", str(PINGS), "-i", str(APART), "-W", f"{seconds:g}"]
    # 1: no answer; 2: this machine itself refuses, as it does a packet larger than its own interface takes.
    out = run([*words, "-s", str(size - HEADERS[version]), address], timeout=seconds + 30, ok=(0, 1, 2))
    return " 0 received" not in out and " received" in out
