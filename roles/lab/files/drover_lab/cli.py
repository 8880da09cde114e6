# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import accelerator
from .guest import IMAGE_SIZE, MIB, Guests
from .lab import Lab
from .run import LabError, hand_over
from .topology import TopologyError

Result = dict[str, Any]
GUEST_SETTINGS = ("ip", "sink", "dirty", "canary")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="lab.py", description="A real cluster of Debian nodes on this machine.")
    top.add_argument("--name", default="drover", help="which lab; several may run side by side (default: drover)")
    top.add_argument("--topology", type=Path, help="a JSON file; default: the one beside this program")
    commands = top.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the lab up, or repair it; nothing is done when it is up")
    up.add_argument("--prepared", action="store_true", help="nodes with all packages installed already")
    commands.add_parser("down", help="remove the lab, whatever state it is in")
    commands.add_parser("status", help="say what is there, as JSON")
    cut = commands.add_parser("cut", help="pull a NIC's cable")
    cut.add_argument("--silent", action="store_true", help="keep the carrier on both ends, drop every frame")
    restore = commands.add_parser("restore", help="mend a cable, or all of them")
    for command in (cut, restore):
        optional: dict[str, Any] = {"nargs": "?", "default": ""} if command is restore else {}
        command.add_argument("node", **optional)
        command.add_argument("nic", **optional)
    for name, text in (("freeze", "stop a program's processes as they are"), ("thaw", "let them go on")):
        command = commands.add_parser(name, help=text)
        command.add_argument("node")
        command.add_argument("program", help="the name of the program's file, for example libvirtd")
    for name, text in (("power-off", "pull a node's plug"), ("power-on", "switch a node on")):
        commands.add_parser(name, help=text).add_argument("node")
    fill = commands.add_parser("fill", help="fill a filesystem of a node")
    fill.add_argument("--size", default="", help="give the path a filesystem of this size first, for example 64M")
    for command in (fill, commands.add_parser("empty", help="take away what fill wrote")):
        command.add_argument("node")
        command.add_argument("path")
    ssh = commands.add_parser("ssh", help="log in to a node, or run a command there")
    ssh.add_argument("node")
    ssh.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("kvm", help="find out by booting a guest whether KVM works here; labs brought up later use it")
    _guest_parser(commands.add_parser("guest", help="build and write the lab's guests"))
    commands.add_parser("supervise", help=argparse.SUPPRESS).add_argument("node")
    return top


def _guest_parser(guest: argparse.ArgumentParser) -> None:
    kinds = guest.add_subparsers(dest="kind", required=True)
    kinds.add_parser("build", help="build them, and say where they are")
    image = kinds.add_parser("image", help="write the bootable disk of a Linux guest that counts")
    image.add_argument("--name", dest="guest", required=True)
    image.add_argument("--ip", default="", help="address with prefix length, for example 10.231.100.21/24")
    image.add_argument("--sink", default="", help="where datagrams go, for example 10.231.100.1:9000")
    image.add_argument("--dirty", default="", help="MiB of memory that are written all the time")
    image.add_argument("--canary", default="", help="a text to fill some memory with")
    image.add_argument("--size", type=int, default=IMAGE_SIZE // MIB, help="MiB (default and least: 32)")
    sector = kinds.add_parser("boot-sector", help="write the disk of the smallest guest that counts")
    sector.add_argument("--size", type=int, default=1, help="MiB (default: 1)")
    for kind in (image, sector):
        kind.add_argument("out", type=Path, help="a file or a block device")


def guest(lab: Lab, options: argparse.Namespace) -> Result:
    """The command ``guest``."""
    guests = Guests(lab.base)
    guests.ensure()
    if options.kind == "image":
        settings = {"name": options.guest}
        settings.update(
            {key: getattr(options, key) for key in ("ip", "sink", "dirty", "canary") if getattr(options, key)}
        )
        guests.write_image(options.out, settings, options.size * MIB)
        return {"changed": True, "image": str(options.out)}
    if options.kind == "boot-sector":
        guests.write_boot_sector(options.out, options.size * MIB)
        return {"changed": True, "image": str(options.out)}
    return {
        "changed": False,
        "kernel": str(guests.kernel),
        "initrd": str(guests.initrd),
        "image": str(guests.image),
        "boot_sector": str(guests.boot_sector),
    }


def up(lab: Lab, options: argparse.Namespace) -> Result:
    """The command ``up``."""
    begin = time.monotonic()
    changed = lab.up(prepared=options.prepared)
    return {"changed": changed, "inventory": str(lab.inventory), "seconds": round(time.monotonic() - begin, 1)}


def ssh(lab: Lab, options: argparse.Namespace) -> int:
    """The command ``ssh``."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    return hand_over(["ssh", "-F", str(lab.state / "ssh_config"), options.node, *words])


# What each command does; what it returns is printed as JSON.
ACTS: dict[str, Callable[[Lab, argparse.Namespace], Result]] = {
    "up": up,
    "down": lambda lab, _given: {"changed": lab.down()},
    "status": lambda lab, _given: lab.status(),
    "cut": lambda lab, given: {"changed": lab.cut(given.node, given.nic, given.silent)},
    "restore": lambda lab, given: {"changed": lab.restore(given.node, given.nic)},
    "freeze": lambda lab, given: {"changed": True, "processes": lab.freeze(given.node, given.program)},
    "thaw": lambda lab, given: {"changed": True, "processes": lab.thaw(given.node, given.program)},
    "power-off": lambda lab, given: {"changed": lab.power_off(given.node)},
    "power-on": lambda lab, given: {"changed": lab.power_on(given.node)},
    "fill": lambda lab, given: {"changed": True, "bytes": lab.fill(given.node, given.path, given.size)},
    "empty": lambda lab, given: {"changed": lab.empty(given.node, given.path)},
    "kvm": lambda lab, _given: {"changed": False, "accel": accelerator.find(lab.base)},
    "guest": guest,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = parser().parse_args(argv)
    try:
        lab = Lab(options.name, options.topology.read_text(encoding="utf-8") if options.topology else "")
        if options.command == "supervise":
            return lab.supervise(options.node)
        if options.command == "ssh":
            return ssh(lab, options)
        print(json.dumps(ACTS[options.command](lab, options), indent=2))
    except (LabError, TopologyError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0
