# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private Open vSwitch for tests: its own database, socket and folder, a dummy datapath, no root, no kernel.

It never touches the machine's own switch, and it dies with the tests, even when they are killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "setpriv")
SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
PREFIX = "drover-ovs-test-"
START = 20.0


def missing() -> list[str]:
    """The programs and files that a private switch needs and this machine does not have."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    return [name for name in PROGRAMS if not shutil.which(name)] + ([] if SCHEMA.exists() else [str(SCHEMA)])


class Server:
    """The two daemons of one private switch."""

    def __init__(self, folder: Path, dummies: str) -> None:
        self.folder = folder
        self.dummies = dummies
        self.socket = str(folder / "db.sock")
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {
            **os.environ,
            "OVS_RUNDIR": str(folder),
            "OVS_DBDIR": str(folder),
            "OVS_LOGDIR": str(folder),
        }

    def start(self) -> None:
        """Make an empty database, start both daemons, and wait until they work together."""
        self._call("ovsdb-tool", "create", str(self.folder / "db"), str(SCHEMA))
        self._daemon("ovsdb-server", str(self.folder / "db"), f"--remote=punix:{self.socket}")
        self._until(lambda: Path(self.socket).exists(), "the database's socket")
        self.vsctl("--no-wait", "init")
        self.start_switch()

    def start_switch(self) -> None:
        """Start ovs-vswitchd with dummies, which need no kernel."""
        self._daemon("ovs-vswitchd", f"unix:{self.socket}", f"--enable-dummy={self.dummies}", "--disable-system")
        self.vsctl("--timeout=20", "set", "Open_vSwitch", ".", "external_ids:ready=true")

    def vsctl(self, *words: str) -> str:
        """Standard output of ovs-vsctl on the private database, not waiting for ever."""
        return self._call("ovs-vsctl", "--timeout=20", f"--db=unix:{self.socket}", *words)

    def appctl(self, *words: str) -> str:
        """What ovs-vswitchd answers to ovs-appctl."""
        return self._call("ovs-appctl", "--timeout=20", *words)

    def restart_switch(self) -> None:
        """End ovs-vswitchd as a crash does, and start it again."""
        self.daemons["ovs-vswitchd"].kill()
        self.daemons["ovs-vswitchd"].wait()
        self.start_switch()

    def get(self, table: str, row: str, column: str) -> str:
        """One cell as ovs-vsctl writes it."""
        return self.vsctl("get", table, row, column).strip()

    def bare(self) -> None:
        """Remove all bridges in one go, and the rows that would stay without them."""
        self.vsctl("--", "clear", "Open_vSwitch", ".", "bridges")
        self.vsctl("--", "--all", "destroy", "QoS", "--", "--all", "destroy", "Queue")

    @contextmanager
    def frozen(self, name: str):
        """The daemon `name` answers nothing as long as the block runs."""
        self.daemons[name].send_signal(signal.SIGSTOP)
        os.waitpid(self.daemons[name].pid, os.WUNTRACED)
        try:
            yield
        finally:
            self.daemons[name].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the daemons that were started here."""
        for daemon in reversed(list(self.daemons.values())):
            daemon.kill()
            daemon.wait()

    def _daemon(self, name: str, *words: str) -> None:
        argv = [name, *words, f"--pidfile={self.folder}/{name}.pid", "-vconsole:off"]
        # setpriv makes the daemon die with the tests, also when those are killed.
        argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        with (self.folder / f"{name}.log").open("wb") as log:
            # A session of its own: the kernel lets a stopped process go on when its group loses its shell.
            self.daemons[name] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        control = self.folder / f"{name}.{self.daemons[name].pid}.ctl"
        self._until(control.exists, f"{name} (see {log.name})")

    def _call(self, *argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30, env=self._environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr}")
        return done.stdout

    def _until(self, ready, what: str) -> None:
        end = time.monotonic() + START
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not there after {START:g} s")
            time.sleep(0.02)


def _sweep() -> None:
    """Remove the folders of test runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name[len(PREFIX) :].split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def private_switch(dummies: str = "override"):
    """A running private switch. `dummies`: "override" for all types of devices, "system" for all but tunnels."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    server = Server(folder, dummies)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
