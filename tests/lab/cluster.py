# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stories and the demo do with a lab: run the collection's playbooks on it, as its installed copy."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import PROGRAM, Lab

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "examples/lab"
COLLECTIONS = Path(os.environ.get("DROVER_COLLECTIONS", ROOT / "build/collections"))
SINK = "10.231.100.1:9000"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
IMAGES = "/srv/drover/images"
# A command that begins so is told to end when the stories' process has ended, however that was. It must be started by a
# thread that waits for it. Ansible ends its workers then, which else would go on: each leads a session of its own.
LEASH = ("setpriv", "--pdeathsig", "TERM")
# No limit for how quick one is, but the end of one that hangs: bare servers beside three other labs took over 600 s.
PLAY_SECONDS = 900


def program(name: str) -> list[str]:
    """The beginning of the command line of one of Ansible's programs, on the leash."""
    return [*LEASH, str(Path(sys.executable).parent / name)]


@dataclass
class Played:
    """How a playbook ended."""

    code: int
    output: str
    seconds: float

    @property
    def changed(self) -> int:
        """The number of changes over all hosts."""
        return sum(int(host[2]) for host in RECAP.findall(self.output))

    def good(self) -> Played:
        """Itself; AssertionError with the output when the run failed."""
        assert self.code == 0, self.output
        assert "Traceback" not in self.output, self.output
        return self

    def refused(self, *words: str) -> Played:
        """Itself; AssertionError unless the run failed, said these words, changed nothing and showed no traceback."""
        assert self.code != 0, f"it went through:\n{self.output}"
        text = re.sub(r"\s+", " ", self.output)
        for word in words:
            assert word in text, f"{word!r} is not said:\n{self.output}"
        assert "Traceback" not in self.output, self.output
        assert self.changed == 0, self.output
        return self


class Cluster:
    """A lab with the site of examples/lab on it."""

    play_seconds = PLAY_SECONDS

    def __init__(self, lab: Lab, site: Path = SITE) -> None:
        self.lab = lab
        self.site = site

    @property
    def inventory(self) -> list[str]:
        """The inventory's sources as options of Ansible's commands."""
        return ["-i", str(self.lab.inventory), "-i", str(self.site)]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of Ansible's commands."""
        own = {
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_HOME": str(self.lab.state / "ansible"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
        }
        return {**os.environ, **own}

    def command(self, playbook: str, *options: str, **variables: Any) -> list[str]:
        """The command line of one of the collection's playbooks, or of a file."""
        name = playbook if "/" in playbook else f"drover.kvm.{playbook}"
        extra = ["-e", json.dumps(variables)] if variables else []
        return [*program("ansible-playbook"), *self.inventory, name, *options, *extra]

    def play(self, playbook: str, *options: str, **variables: Any) -> Played:
        """Run a playbook to its end (`play_seconds` at most)."""
        begin = time.monotonic()
        process = self.start(playbook, *options, **variables)
        try:
            output = process.communicate(timeout=self.play_seconds)[0]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{playbook}: no end after {self.play_seconds} s:\n{self.kill(process)}") from None
        finally:
            if process.poll() is None:
                self.kill(process)
        return Played(process.returncode, output, time.monotonic() - begin)

    def task(self, node: str, module: str, check: bool = False, **task: Any) -> dict[str, Any]:
        """The result of one of the collection's modules on a node."""
        argv = [*program("ansible"), *self.inventory, node, "-m", f"drover.kvm.{module}", "-a", json.dumps(task)]
        done = subprocess.run(
            [*argv, *(["--check"] if check else [])],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PLAY_SECONDS,
            check=False,
        )
        match = re.search(r"=> (\{.*\})\s*$", done.stdout, re.DOTALL)
        assert match, done.stdout + done.stderr
        return {"failed": "FAILED!" in done.stdout, **json.loads(match.group(1))}

    def start(self, playbook: str, *options: str, **variables: Any) -> subprocess.Popen[str]:
        """Start a playbook in a process group of its own, to be cut off with `kill`."""
        return subprocess.Popen(
            self.command(playbook, *options, **variables),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @staticmethod
    def kill(process: subprocess.Popen[str]) -> str:
        """kill -9 a playbook with all of its processes; returns what it had said."""
        # Each of Ansible's workers leads a group of its own, and would go on with its task.
        for pid in family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return process.communicate()[0]

    def ssh(self, node: str, *argv: str, check: bool = True, timeout: float = 60, stdin: str = "") -> str:
        """Run a command on a node."""
        command = ["ssh", "-F", str(self.lab.state / "ssh_config"), node, *argv]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0 or not check, f"{node}: {argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def domains(self, node: str) -> dict[str, str]:
        """The VMs of a node and their states, from libvirt itself."""
        # One look: a VM that moves away is gone when one asks for it by name.
        lines = [line.split(maxsplit=2) for line in self.ssh(node, "virsh", "-q", "list", "--all").splitlines()]
        return {name: state.strip() for _number, name, state in lines}

    def where(self) -> dict[str, str]:
        """VM → the node on which libvirt says that it runs."""
        nodes = [name for name in self.lab.topology.nodes if name.startswith("hv")]
        return {name: node for node in nodes for name, state in self.domains(node).items() if state == "running"}

    def sheets(self) -> dict[str, Any]:
        """The declared VMs and their variables, as Ansible sees them."""
        argv = [*program("ansible-inventory"), *self.inventory, "--list"]
        text = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=True).stdout
        data = json.loads(text)
        return {name: data["_meta"]["hostvars"][name] for name in data["vms"]["hosts"]}

    def write_images(self, **settings: str) -> None:
        """Put a bootable image for each declared VM on the SAN, where build_vms finds it."""
        guests = Guests(self.lab.base)
        guests.ensure()
        is_vm = self.lab.topology.nodes["san1"].kind == "vm"
        folder = self.lab.state / "images" if is_vm else self.lab.machine("san1").path(IMAGES)
        folder.mkdir(parents=True, exist_ok=True)
        for name, sheet in self.sheets().items():
            image = {"name": name, "ip": str(sheet["guest_address"]), "sink": SINK, **settings}
            guests.write_image(folder / f"{name}.img", image)
        if is_vm:
            # Emulated, and beside other labs: 60 s were too few once.
            self.ssh("san1", "mkdir", "-p", IMAGES, timeout=300)
            config = str(self.lab.state / "ssh_config")
            subprocess.run(["scp", "-C", "-q", "-F", config, *folder.glob("*.img"), f"san1:{IMAGES}"], check=True)


def example_lab(name: str, example: Path) -> AbstractContextManager[Cluster]:
    """The nodes of an example and its site, as `own_lab` has them."""
    return own_lab(name, example / "topology.json", example / "inventory")


@contextmanager
def borrowed(lab: Lab) -> Iterator[None]:
    """Take the lab down at the end, also when this process is killed; with DROVER_LAB_KEEP=1 it stays."""
    if keeps():
        yield
        return
    # No process but ours can write to its standard input, which therefore ends when we do.
    down = [sys.executable, str(PROGRAM), "--name", lab.name, "down"]
    watch = subprocess.Popen(
        ["sh", "-c", 'read -r _word || exec "$@"', "sh", *down],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield
    finally:
        watch.communicate("ended\n")
        lab.down()


def keeps() -> bool:
    """Whether labs stay up at the end, for the next run."""
    return os.environ.get("DROVER_LAB_KEEP", "0") == "1"


@contextmanager
def own_lab(name: str, topology: Path, site: Path) -> Iterator[Cluster]:
    """The nodes of a topology on a lab of its own, prepared and not set up as `site` yet; gone at the end.

    With DROVER_LAB_KEEP=1 it stays, and one that is there already is used as it is.
    """
    if not keeps():
        Lab(name).down()
    lab = Lab(name, topology.read_text(encoding="utf-8"))
    with borrowed(lab):
        lab.up(prepared=True)
        lab.restore()
        yield Cluster(lab, site)


def tasks(cluster: Cluster, hosts: str, each: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of some tasks on one node, in one play; `seconds` is how long each took."""
    variables = {"ansible_ssh_pipelining": True}
    play = {"name": "Tasks of a story", "hosts": hosts, "gather_facts": False, "vars": variables, "tasks": each}
    book = cluster.lab.state / "tasks.json"
    book.write_text(json.dumps([play]), encoding="utf-8")
    done = subprocess.run(
        cluster.command(str(book)),
        env={**cluster.environment, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PLAY_SECONDS,
        check=False,
    )
    found = []
    for task in json.loads(done.stdout)["plays"][0]["tasks"]:
        start, end = (datetime.fromisoformat(task["task"]["duration"][key].rstrip("Z")) for key in ("start", "end"))
        found.append({**task["hosts"][hosts], "seconds": (end - start).total_seconds()})
    assert len(found) == len(each), done.stdout + done.stderr
    return found


def family(pid: int) -> list[int]:
    """A process and all that descend from it, each stopped before its children are read, so that none is missed."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in thread.read_text(encoding="ascii").split():
                found += family(int(child))
    return found


def wait_until(see: Any, seconds: float, what: str) -> None:
    """Wait until `see()` is True; AssertionError with what it saw last."""
    end = time.monotonic() + seconds
    while (seen := see()) is not True:
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s; last seen: {seen}"
        time.sleep(0.2)
