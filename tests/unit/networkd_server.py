# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private systemd-networkd with NICs of its own, in namespaces where nothing of the machine is seen or touched."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.modules import networkd

DAEMON = "/usr/lib/systemd/systemd-networkd"
NICS = 4
# networkd waits for udev, unless /sys can't be written, as in a container.
# Nobody is here to start a timer: its command waits in a file.
START = rf"""
set -e
mount -t tmpfs none /run
mount -t tmpfs none /etc/systemd/network
mount -t proc proc /proc
mount -t sysfs -o ro sysfs /sys
mkdir -p /run/dbus /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/system /run/lock
chown -R systemd-network: /run/systemd/netif
ip link set lo up
for number in $(seq {NICS}); do
    ip link add nic$number type veth peer name far$number
    ip link set far$number up
done
mkdir /run/bin
printf '#!/bin/sh\nfor word; do shift; case $word in --*) ;; *) echo "$word" "$@" >>/run/armed; break ;; esac; done\n' \
    >/run/bin/systemd-run
chmod +x /run/bin/systemd-run
dbus-daemon --system --fork --nopidfile
# networkd gives up root, and with it the signal that ends it with its parent; this shell keeps it.
{DAEMON} >/run/networkd.log 2>&1
"""


def missing() -> str:
    """Why it can't run here; empty when it can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    for program in ("setpriv", "unshare", "nsenter", "ip", "networkctl", "dbus-daemon", DAEMON):
        if shutil.which(program) is None:
            return f"not installed: {program}"
    try_bridge = ["unshare", "-n", "ip", "link", "add", "br0", "type", "bridge"]
    return "" if subprocess.run(try_bridge, capture_output=True, check=False).returncode == 0 else "no bridges here"


class Machine:
    """A machine with networkd and NICs nic1, nic2, ...; far1 is the other end of nic1's cable."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def command(self, *argv: str) -> list[str]:
        """A command line that runs inside."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "--", *argv]

    def run(self, *argv: str, check: bool = True, stdin: str | None = None, errors: bool = False) -> str:
        """Run a command inside; what it prints."""
        done = subprocess.run(
            self.command(*argv), input=stdin, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if errors else "")

    def sh(self, script: str, check: bool = True) -> str:
        """Run a script inside."""
        return self.run("sh", "-c", script, check=check)

    def module(self, **args: Any) -> dict[str, Any]:
        """What the module returns, run by a child of this process: a new interpreter would cost most of the time."""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            child = os.fork()
            if child == 0:
                self._be_the_module(said, args)
            os.waitpid(child, 0)
            said.seek(0)
            text = said.read()
        lines = [line for line in text.splitlines() if line.startswith("{")]
        assert lines, text
        result: dict[str, Any] = json.loads(lines[-1])
        return result

    def _be_the_module(self, out: TextIO, args: dict[str, Any]) -> NoReturn:
        sys.stdout = sys.stderr = out
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            for kind in ("net", "pid", "mnt"):  # the last hides the /proc that names the others
                with open(f"/proc/{self.pid}/ns/{kind}", encoding="ascii") as namespace:
                    assert libc.setns(namespace.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
            # Only a child lives in the process namespace, and there is no thread with one foot in another.
            if (child := os.fork()) != 0:
                os.waitpid(child, 0)
                os._exit(0)
            os.environ["PATH"] = "/run/bin:" + os.environ["PATH"]
            with patch_module_args(args):
                networkd.main()
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            out.flush()
            os._exit(0)

    def elapse(self) -> str:
        """The time of the timer is over; what its program prints."""
        return self.sh("$(cat /run/armed); rm /run/armed")

    def link(self, name: str) -> dict[str, Any] | None:
        """What the kernel says of a link."""
        found = json.loads(self.run("ip", "-json", "-details", "address", "show", "dev", name, check=False) or "[]")
        return next((link for link in found if link), None)

    def ports(self, bridge: str) -> list[str]:
        """The links that are in a bridge."""
        found = json.loads(self.run("ip", "-json", "link", "show", "master", bridge, check=False) or "[]")
        return sorted(link["ifname"] for link in found if link)

    def addresses(self, name: str) -> list[str]:
        """The addresses of a link but those of the link alone."""
        entries = (self.link(name) or {"addr_info": []})["addr_info"]
        return [f"{item['local']}/{item['prefixlen']}" for item in entries if item["scope"] == "global"]


@contextmanager
def private_networkd() -> Iterator[Machine]:
    """One such machine; it is gone with all that it had at the end."""
    argv = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "-n",
        "-m",
        "-p",
        "-f",
        "--kill-child",
        "--propagation",
        "private",
        "sh",
        "-c",
        START,
    ]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            yield _ready(process)
        finally:
            process.kill()


def _ready(process: subprocess.Popen[bytes]) -> Machine:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(0.1)
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
            children = file.read().split()
        if children:
            machine = Machine(int(children[0]))
            if "nic1" in machine.run("networkctl", "list", "--no-legend", check=False):
                return machine
    raise AssertionError("systemd-networkd did not start")
