# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that must not get through: names that are words of commands, shells, XML or templates, and wrong VLANs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

CANARY = "/tmp/drover-corpus-canary"  # nosec: nothing may ever make it
NAMES = [
    "",
    " ",
    "-",
    "--",
    "-rf",
    "--help",
    "--db=unix:/nowhere",
    "-- --all destroy Bridge",
    "br0 -- del-br br0",
    "br0 --",
    "--\ndel-br\nbr0",
    "br0;del-br br0",
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"br0;touch {CANARY}",
    f"br0|touch {CANARY}",
    f"br0&&touch {CANARY}",
    f"br0\ntouch {CANARY}\n",
    "br0\n",
    "\nbr0",
    "br0\r",
    "br0\t",
    "br0\x00",
    "br0\x1b[2J",
    "br0 ",
    " br0",
    "br0,eth1",
    "br0=eth1",
    "br:0",
    "br0@eth1",
    ".",
    "..",
    "../br0",
    "br..0",
    "/etc/passwd",
    "br0/..",
    "br'0",
    'br"0',
    "br\\0",
    "]]>",
    "<bridge/>",
    "&lt;",
    "{{ 7 * 7 }}",
    "{% if x %}",
    "{{ lookup('pipe', 'id') }}",
    "%s",
    "%(name)s",
    "[0]",
    "*",
    "?",
    "~",
    "!br0",
    "#br0",
    "br\u00fc0",
    "br\uff10",
    "br\u200b0",
    "a" * 64,
    "a" * 5000,
]
# Names that are right elsewhere but too long for an interface of Linux.
TOO_LONG = ["a" * 16, "drover-bridge-of-the-cluster"]
VLANS = [0, 4095, 4096, -1, 65536, "x", "1.5", "0x10", "10;20", "10-20", "10,20", "--", [], {"a": 1}]
VLAN_LISTS = [[10, 10], [0], [4095], [4096], [-1], [10, "x"], [10, 4095], ["10-20"], ["--"]]
# What an item of a list must have beside the value that is tried.
BESIDE: dict[str, dict[str, Any]] = {
    "ports": {"name": "eth0"},
    "bonds": {"name": "bond0", "members": ["eth0", "eth1"]},
    "mirrors": {"name": "m0", "output_port": "eth0"},
    "queues": {"id": 0},
    "nics": {"bridge": "br-int"},
}


def options(fields: Sequence[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each option that holds one value or a list of values, at any depth, with its path."""
    for field in fields:
        if field.fields:
            yield from options(field.fields, (*path, field.name))
        else:
            yield (*path, field.name), field


def nested(fields: Sequence[Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The arguments that give this value to the option at that path, and what must stand beside it."""
    field = next(field for field in fields if field.name == path[0])
    if len(path) == 1:
        return {field.name: [value] if field.type == "list" and not isinstance(value, list) else value}
    inner = {**BESIDE.get(field.name, {}), **nested(field.fields, path[1:], value)}
    return {field.name: [inner] if field.type == "list" else inner}


def words(fields: Sequence[Any], free: set[str]) -> list[tuple[str, ...]]:
    """The paths of all options that are names or other words, but for those in `free`, which may be any text."""
    kinds = ("str", "raw")
    return [
        path
        for path, field in options(fields)
        if not field.choices and path[-1] not in free and (field.elements or field.type) in kinds
    ]


def vlans(fields: Sequence[Any]) -> list[tuple[tuple[str, ...], list[Any]]]:
    """The paths of all options that are VLANs, each with the values that are wrong for it."""
    names = {"vlan", "tag", "output_vlan"}, {"trunks", "cvlans", "select_vlans"}
    one = [(path, VLANS) for path, _field in options(fields) if path[-1] in names[0]]
    return one + [(path, VLAN_LISTS) for path, _field in options(fields) if path[-1] in names[1]]


# Paths that must not become a disk: detours, protocols and options of QEMU, devices, the system's own files.
PATHS = [
    "",
    "a.raw",
    "../a.raw",
    "/srv/../etc/a.raw",
    "/srv//a.raw",
    "/srv/./a.raw",
    "/srv/a.raw/",
    "/srv/a\nb.raw",
    "/srv/a\x00b.raw",
    "json:{}",
    'json:{"driver":"file","filename":"/etc/shadow"}',
    "nbd://10.0.0.1/export",
    "nbd:unix:/run/x",
    "file:/etc/shadow",
    "fat:rw:/etc",
    "-rf",
    "--help",
    f"$(touch {CANARY})",
    "/" + "x" * 1001,
]
SYSTEM_PATHS = [
    "/dev/sda",
    "/dev/mem",
    "/dev/mapper/vg0-root",
    "/etc/shadow",
    "/proc/kcore",
    "/sys/kernel/x",
    "/boot/vmlinuz",
    "/root/.ssh/id_ed25519",
    "/run/libvirt/x",
    "/usr/bin/qemu-img",
]
# Harmless in an absolute path that is an argument of its own; they must mean this very file.
ODD_PATHS = [
    "a,b.raw",
    "a:b.raw",
    "json:a.raw",
    "-a.raw",
    "a b.raw",
    "a'b\".raw",
    "a,format=qcow2.raw",
    "a%20b.raw",
    "ä.raw",
]
