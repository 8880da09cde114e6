# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab as a whole: up, down, status, and the faults that a story needs."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
from pathlib import Path
from typing import Any

from . import accelerator, cgroups, controller_files, vm_state
from .base import Base
from .ceph import Ceph
from .container import Container
from .network import RUN_NETNS, Network
from .nodes import Machine, Parts
from .run import LabError, lock, run, wait_for
from .topology import NAME, Topology, far_end, parse
from .vm import Vm
from .vm_image import VmImage

STATE_ROOT = Path("/var/tmp/drover-lab")
FILES = Path(__file__).resolve().parent.parent
DEFAULT_TOPOLOGY = FILES / "topology.json"
PROGRAM = FILES / "lab.py"
# What systemd-nspawn leaves of a container that was killed.
PROPAGATE = Path("/run/systemd/nspawn/propagate")
# Kernel limits that all nodes of all labs share, because they share the host's users: with the usual 128 inotify
# instances libvirtd fails to start on the tenth node or so.
LIMITS = {"fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 524288, "fs/aio-max-nr": 1048576}
LOCK_SECONDS = 1800
KINDS: dict[str, type[Machine]] = {"container": Container, "vm": Vm}


class Lab:
    """One lab by its name. Methods are safe to repeat; what they did is in what they return."""

    def __init__(self, name: str = "drover", topology: str = "") -> None:
        """``topology`` is JSON text; without it the lab's own (when it is up), else the default one."""
        if not NAME.fullmatch(name) or len(name) > 32:
            raise LabError(f"name {name!r}: small letters, digits and single dashes, at most 32")
        self.name = name
        self.state = STATE_ROOT / name
        saved = self.state / "topology.json"
        self.asked = topology
        if not topology:
            topology = (saved if saved.exists() else DEFAULT_TOPOLOGY).read_text(encoding="utf-8")
        self.topology: Topology = parse(topology, DEFAULT_TOPOLOGY.read_text(encoding="utf-8"))
        self.network = Network(name, self.topology, self.state)
        self.base = Base(self.topology, name)
        others = {node.suite for node in self.topology.nodes.values()} - {""}
        self.releases = {suite: Base(self.topology.release(suite), name) for suite in sorted(others)}
        self.machines = {
            node.name: KINDS[node.kind](name, self.topology, node, self.state) for node in self.topology.nodes.values()
        }

        ceph = self.topology.ceph
        self.ceph = Ceph(name, self.topology, ceph, self.state) if ceph else None

    @property
    def inventory(self) -> Path:
        """The inventory folder; other files may be laid beside ``hosts.yml``."""
        return self.state / "inventory"

    @property
    def settings(self) -> dict[str, Any]:
        """What this lab was brought up with."""
        path = self.state / "settings.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

    def _locked(self) -> Any:
        return lock(STATE_ROOT / f".{self.name}.lock", LOCK_SECONDS)

    def machine(self, node: str) -> Machine:
        """The machine of that name; TopologyError when there is none."""
        return self.machines[self.topology.node(node).name]

    def up(self, prepared: bool = False) -> bool:
        """Bring the lab up, or repair what is missing of it; returns whether anything was."""
        with self._locked():
            self._check_same(prepared)
            cgroups.kill(lambda: cgroups.members(self.name, "build"))
            _raise_limits()
            changed = self._write_state(prepared, self._parts(prepared))
            changed |= self.network.ensure()
            for machine in self.machines.values():
                changed |= machine.configure()
            self._write_controller_files()
            for name in self.machines:
                changed |= self._start(name)
            self.wait_ssh()
            if self.ceph is not None:
                changed |= self.ceph.ensure(look=not changed)
            return changed

    def _check_same(self, prepared: bool) -> None:
        settings = self.settings
        if settings and self.asked and self.topology.text != parse(self._saved()).text:
            raise LabError(f"lab {self.name} has another topology: take it down first")
        if settings and settings["prepared"] != prepared:
            kind = "prepared" if settings["prepared"] else "bare"
            raise LabError(f"lab {self.name} is up with {kind} nodes: take it down first")

    def _parts(self, prepared: bool) -> Parts:
        """What the nodes are made of, made first if need be."""
        root, kvm = self.base.ensure(prepared), accelerator.known() == "kvm"
        for base in self.releases.values():
            base.ensure(prepared)
        image = VmImage(self.base, prepared)
        vms = [node for node in self.topology.nodes.values() if node.kind == "vm"]
        if vms:
            image.ensure()
        for node in vms if not kvm else ():
            vm_state.ensure(self.base, image.folder, node.memory, node.vcpus)
        return Parts(root=root, repo=self.base.repo, programs=self.base.prepared, image=image.folder, kvm=kvm)

    def _saved(self) -> str:
        return (self.state / "topology.json").read_text(encoding="utf-8")

    def _write_state(self, prepared: bool, parts: Parts) -> bool:
        if self.settings:
            return False
        for folder in ("nodes", "inventory", "bin", "cp"):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        for path in self.topology.shared:
            (self.state / f"shared{path}").mkdir(parents=True, exist_ok=True)
        (self.state / "id_ed25519").unlink(missing_ok=True)
        key = str(self.state / "id_ed25519")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {self.name}", "-f", key])
        self._write("topology.json", self.topology.text)
        folders = {name: str(getattr(parts, name)) for name in ("root", "repo", "programs", "image")}
        settings: dict[str, Any] = {"prepared": prepared, **folders, "accel": "kvm" if parts.kvm else "tcg"}
        # What nodes of another release have in place of that; `ensure` only says where it is, it is there.
        settings["releases"] = {
            suite: {"root": str(base.ensure(prepared)), "repo": str(base.repo)} for suite, base in self.releases.items()
        }
        self._write("settings.json", json.dumps(settings, indent=2))
        return True

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.state / name
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.chmod(mode)
        new.rename(path)

    def _write_controller_files(self) -> None:
        state = str(self.state)
        hosts = controller_files.inventory(self.topology, state, self.name, self.settings["accel"])
        self._write("inventory/hosts.yml", json.dumps(hosts, indent=2) + "\n")
        if not (self.state / "inventory.yml").is_symlink():
            (self.state / "inventory.yml").symlink_to("inventory/hosts.yml")
        config = controller_files.ssh_config(self.topology, state, self.network.namespace("switch"))
        self._write("ssh_config", config)
        keys = {name: machine.host_key() for name, machine in self.machines.items()}
        self._write("known_hosts", controller_files.known_hosts(keys))
        self._write("bin/ssh", f'#!/bin/sh\nexec ssh -F {state}/ssh_config "$@"\n', 0o755)

    def _start(self, node: str) -> bool:
        return self.machine(node).power_on(PROGRAM)

    def supervise(self, node: str) -> int:
        """The inside of a node's supervisor process; not for people."""
        settings = self.settings
        own = settings.get("releases", {}).get(self.topology.node(node).suite, {})
        folders = {name: Path({**settings, **own}[name]) for name in ("root", "repo", "programs", "image")}
        return self.machine(node).supervise(Parts(kvm=settings["accel"] == "kvm", **folders))

    def ssh(self, node: str, *command: str, timeout: float = 60, check: bool = True) -> str:
        """Run a command on a node and return its output; LabError when it fails."""
        argv = ["ssh", "-F", str(self.state / "ssh_config"), node, "--", *command]
        return run(argv, timeout=timeout, check=check).stdout

    def answers(self, node: str) -> tuple[bool, str]:
        """Whether the node lets us in, and if not, what ssh said."""
        seconds = self.machine(node).answer_seconds
        argv = ["ssh", "-F", str(self.state / "ssh_config"), "-o", f"ConnectTimeout={seconds}", node, "true"]
        try:
            done = run(argv, check=False, timeout=seconds + 15)
        except LabError as error:  # ssh has given up, and its ProxyCommand, still connecting, holds the pipe open
            return False, str(error)
        return done.returncode == 0, f"{done.returncode} {done.stderr.strip()}"

    def wait_ssh(self, *nodes: str, seconds: float = 0) -> None:
        """Wait until these nodes (all when none is named) answer ssh; without ``seconds`` as long as they may boot."""

        def wait(node: str) -> None:
            try:
                limit = seconds or self.machine(node).boot_seconds
                wait_for(f"ssh to {node}", lambda: self.answers(node), limit, step=0.2)
            except LabError as error:
                console = (self.machine(node).folder / "console.log").read_text(encoding="utf-8", errors="replace")
                raise LabError(f"{error}\nits console ends:\n{console[-1500:]}") from error

        with concurrent.futures.ThreadPoolExecutor() as pool:
            for done in [pool.submit(wait, node) for node in nodes or self.machines]:
                done.result()

    def down(self) -> bool:
        """Remove everything, whatever state it is in; returns whether anything was there."""
        with self._locked():
            there = self.state.exists()
            inodes = self.network.inodes()
            found = cgroups.kill(lambda: sorted({*cgroups.members(self.name), *cgroups.in_namespaces(inodes)}))
            found |= self.network.remove()
            found |= cgroups.remove(self.name)
            for left in PROPAGATE.glob(f"{self.name}.*"):
                left.rmdir()
            if there:
                shutil.rmtree(self.state)
            (STATE_ROOT / f".{self.name}.lock").unlink(missing_ok=True)
        try:
            STATE_ROOT.rmdir()
        except OSError:
            return found or there
        return found or there

    def status(self) -> dict[str, Any]:
        """What is there now, as data."""
        nodes = {}
        for name, machine in self.machines.items():
            pids = machine.pids()
            nodes[name] = {"power": "on" if machine.leader() else "off", "processes": len(pids), "cut": self.cuts(name)}
        ceph = {"ceph": self.ceph.status()} if self.ceph and self.settings else {}
        return {"name": self.name, "state": str(self.state), **self.settings, "nodes": nodes, **ceph}

    def power_off(self, node: str) -> bool:
        """Pull a node's plug."""
        return self.machine(node).power_off()

    def power_on(self, node: str, wait: bool = True) -> bool:
        """Switch a node on, and wait for its ssh."""
        changed = self._start(node)
        if wait:
            self.wait_ssh(node)
        return changed

    def _cut_names(self, node: str, nic: str) -> list[tuple[str, str]]:
        return [(node, nic), far_end(self.topology, node, nic)]

    def cuts(self, node: str) -> dict[str, str]:
        """NIC → "pulled" or "silent", for the NICs of a node that are cut."""
        if not (RUN_NETNS / self.network.namespace(node)).exists():
            return {}
        tables = run(self.network.enter(node, ["nft", "list", "tables"]), check=False).stdout
        links = self.network.links("switch")
        found = {}
        for nic in self.topology.node(node).nics:
            place, port = far_end(self.topology, node, nic.name)
            there = links if place == "switch" else self.network.links(place)
            if f"drover_cut_{nic.name}\n" in tables:
                found[nic.name] = "silent"
            elif port in there and "UP" not in there[port].get("flags", []):
                found[nic.name] = "pulled"
        return found

    def cut(self, node: str, nic: str, silent: bool = False) -> bool:
        """Pull a cable; ``silent``: both ends keep their carrier, and nothing arrives. Returns whether it was whole."""
        if nic in self.cuts(node):
            return False
        if not silent:
            place, port = far_end(self.topology, node, nic)
            run(["ip", "-n", self.network.namespace(place), "link", "set", port, "down"])
            return True
        for place, port in self._cut_names(node, nic):
            hook = f'type filter hook egress device "{port}" priority 0; policy drop;'
            rule = f"table netdev drover_cut_{port} {{ chain out {{ {hook} }}; }}"
            run(self.network.enter(place, ["nft", "-f", "-"]), feed=rule)
        return True

    def restore(self, node: str = "", nic: str = "") -> bool:
        """Mend one NIC's cable, all of a node's, or every one."""
        changed = False
        for name in [node] if node else list(self.machines):
            for cut, how in self.cuts(name).items():
                if nic and cut != nic:
                    continue
                changed = True
                for place, port in self._cut_names(name, cut):
                    if how == "silent":
                        run(self.network.enter(place, ["nft", "delete", "table", "netdev", f"drover_cut_{port}"]))
                if how == "pulled":
                    place, port = far_end(self.topology, name, cut)
                    run(["ip", "-n", self.network.namespace(place), "link", "set", port, "up"])
        return changed

    def freeze(self, node: str, program: str) -> list[int]:
        """Stop the processes of a program (its file's name) on a node as they are; returns their ids.

        They are the host's ids for a container, and the node's own for a VM.
        """
        return self.machine(node).freeze(program)

    def thaw(self, node: str, program: str) -> list[int]:
        """Let frozen processes go on."""
        return self.machine(node).thaw(program)

    def fill(self, node: str, path: str, size: str = "") -> int:
        """Fill the filesystem mounted at ``path`` of a node; returns the bytes written.

        With ``size`` ("64M") a path that is no filesystem of its own gets one first, its content copied into it.
        """
        return self.machine(node).fill(path, size)

    def empty(self, node: str, path: str) -> bool:
        """Take away what :meth:`fill` wrote."""
        return self.machine(node).empty(path)


def _raise_limits() -> None:
    for name, least in LIMITS.items():
        path = Path("/proc/sys") / name
        if int(path.read_text(encoding="ascii")) < least:
            path.write_text(str(least), encoding="ascii")
