# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The written map of the cables against what LACP and LLDP say. Pure, standard library only.

A place is where the far end of a cable sits: switch, system id, port-channel key, port. A row is one interface of one
host with its declared place and its live one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Facts = dict[str, Any]
# What may be declared of a place: who tells it, and under which name.
SOURCES = {
    "switch": ("lldp", "switch"),
    "system": ("partner", "system"),
    "key": ("partner", "key"),
    "port": ("partner", "port"),
    "port_name": ("lldp", "port"),
}
HEADINGS = ("host", "interface", "declared", "live", "verdict")


def report(answers: Mapping[str, Any], declared: Mapping[str, Any]) -> Facts:
    """Rows, a table in lines of text, and the number of rows that are wrong.

    `answers` are the results of ovs_info by host, `declared` the maps `switch_ports` by host. A host without an answer
    has rows that say so. Raises ValueError for a map that can't be read.
    """
    places = {host: _checked(host, ports) for host, ports in declared.items()}
    rows = [row for host in sorted(places) for row in _host_rows(host, places[host], answers.get(host))]
    for row in rows:
        row["verdict"], row["swapped_with"] = (row["verdict"], None) if row["verdict"] else _verdict(row, rows)
        row["ok"] = row["verdict"] == "ok"
    shown = [_shown(row) for row in rows]
    return {"rows": shown, "table": _table(shown), "wrong": sum(not row["ok"] for row in rows)}


def _checked(host: str, ports: Any) -> dict[str, Facts]:
    if not isinstance(ports, Mapping):
        raise ValueError(f"switch_ports of {host} is not a map of interfaces")
    for interface, place in ports.items():
        if not isinstance(place, Mapping) or not place or set(place) - set(SOURCES):
            raise ValueError(f"switch_ports of {host}: {interface} is {place!r}; give it some of {', '.join(SOURCES)}")
    return {interface: {key: _plain(value) for key, value in place.items()} for interface, place in ports.items()}


def _plain(value: Any) -> str:
    return "" if value is None else str(value).lower()


def _host_rows(host: str, ports: Mapping[str, Facts], answer: Any) -> list[Facts]:
    links = {link["interface"]: link for link in (answer or {}).get("links", [])}
    silent = "" if answer and "links" in answer else "no answer from the host"
    spoken = {name for name, link in links.items() if link["partner"] or link["lldp"]}
    rows = []
    for interface in sorted({*ports, *(spoken if ports else ())}):
        link = links.get(interface, {})
        live = {name: _plain((link.get(who) or {}).get(key)) for name, (who, key) in SOURCES.items()}
        row = {"host": host, "interface": interface, "declared": ports.get(interface, {}), "live": live}
        rows.append({**row, "verdict": silent or _trouble(interface, ports, link)})
    return rows


def _trouble(interface: str, ports: Mapping[str, Facts], link: Mapping[str, Any]) -> str:
    """Why nothing can be compared."""
    if interface not in ports:
        return "not declared"
    if not link:
        return "no LACP and no LLDP on this interface"
    if link.get("link_state") == "down":
        return "link down"
    if not link["partner"] and not link["lldp"]:
        return "no partner"
    return ""


def _fits(place: Mapping[str, str], live: Mapping[str, str]) -> bool:
    """Whether all that is declared of a place is told of it; what is told otherwise differs."""
    return bool(place) and all(live[key] == value for key, value in place.items())


def _verdict(row: Facts, rows: Sequence[Facts]) -> tuple[str, str | None]:
    """The verdict in words, and the end that sits in this one's place while this one sits in its."""
    if _fits(row["declared"], row["live"]):
        return "ok", None
    others = [other for other in rows if other is not row and not _fits(other["declared"], other["live"])]
    here = [other for other in others if _fits(other["declared"], row["live"])]
    back = [other for other in here if _fits(row["declared"], other["live"])]
    if len(back) == 1:
        return f"swapped with {_name(back[0])}", _name(back[0])
    if len(here) == 1:
        return f"is in the place of {_name(here[0])}", None
    wrong = [key for key, value in row["declared"].items() if row["live"][key] != value]
    return f"wrong {', '.join(wrong)}", None


def _name(row: Facts) -> str:
    return f"{row['host']} {row['interface']}"


def _shown(row: Facts) -> Facts:
    told = row["declared"] or {key: value for key, value in row["live"].items() if value}
    live = {key: row["live"][key] or "-" for key in SOURCES if key in told}
    return {**row, "declared": _text(row["declared"]), "live": _text(live)}


def _text(place: Mapping[str, str]) -> str:
    return " ".join(f"{key}={place[key]}" for key in SOURCES if key in place) or "-"


def _table(rows: Iterable[Facts]) -> list[str]:
    lines = [HEADINGS, *(tuple(str(row[key]) for key in HEADINGS) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADINGS))]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines]
