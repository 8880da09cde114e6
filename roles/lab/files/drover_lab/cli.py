# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .lab import Lab
from .run import LabError
from .topology import TopologyError


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
        optional = {"nargs": "?", "default": ""} if command is restore else {}
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
    commands.add_parser("supervise", help=argparse.SUPPRESS).add_argument("node")
    return top


def act(lab: Lab, options: argparse.Namespace) -> dict[str, object]:
    """Carry out one command; what it returns is printed as JSON."""
    command = options.command
    if command == "up":
        begin = time.monotonic()
        changed = lab.up(prepared=options.prepared)
        return {"changed": changed, "inventory": str(lab.inventory), "seconds": round(time.monotonic() - begin, 1)}
    if command == "down":
        return {"changed": lab.down()}
    if command == "status":
        return lab.status()
    if command == "cut":
        return {"changed": lab.cut(options.node, options.nic, options.silent)}
    if command == "restore":
        return {"changed": lab.restore(options.node, options.nic)}
    if command in ("freeze", "thaw"):
        return {"changed": True, "processes": getattr(lab, command)(options.node, options.program)}
    if command in ("power-off", "power-on"):
        return {"changed": getattr(lab, command.replace("-", "_"))(options.node)}
    if command == "fill":
        return {"changed": True, "bytes": lab.fill(options.node, options.path, options.size)}
    return {"changed": lab.empty(options.node, options.path)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = parser().parse_args(argv)
    try:
        lab = Lab(options.name, options.topology.read_text(encoding="utf-8") if options.topology else "")
        if options.command == "supervise":
            return lab.supervise(options.node)
        if options.command == "ssh":
            words = options.words[1:] if options.words[:1] == ["--"] else options.words
            os.execvp("ssh", ["ssh", "-F", str(lab.state / "ssh_config"), options.node, *words])
        print(json.dumps(act(lab, options), indent=2))
    except (LabError, TopologyError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0
