# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real tgtd for tests: own socket, a port on loopback, started as the service starts it; libiscsi as initiator."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt import Tgt
from ansible_collections.drover.kvm.plugins.module_utils._volume_file import MARK

TOOLS = ("tgtd", "tgtadm", "tgt-admin", "iscsi-perf", "iscsi-inq", "iscsi-readcapacity16")
PREFIX = "iqn.2026-11.test.drover"


def missing() -> list[str]:
    """What keeps the tests from running here; they need the packages tgt and libiscsi-bin."""
    return [tool for tool in TOOLS if shutil.which(tool) is None] + (["root"] if os.geteuid() else [])


class PrivateSan:
    """A tgtd of our own and its directories."""

    def __init__(self):
        self.base = Path(tempfile.mkdtemp(prefix="drover-tgt-", dir="/var/tmp"))
        self.conf, self.data = self.base / "conf.d", self.base / "srv"
        self.conf.mkdir()
        (self.data / "images").mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        os.environ["TGT_IPC_SOCKET"] = str(self.base / "socket")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self):
        """As the service does: the daemon, then tgt-admin with the configuration."""
        argv = ["tgtd", "-f", "--iscsi", f"portal=127.0.0.1:{self.port}"]
        log = (self.base / "log").open("a")
        self.daemon = subprocess.Popen(argv, stdout=log, stderr=log)
        self.processes.append(self.daemon)
        end = time.monotonic() + 20
        while True:
            try:
                Tgt().portals()
                break
            except DroverError:
                assert time.monotonic() < end, (self.base / "log").read_text()
                time.sleep(0.02)
        main = self.base / "targets.conf"
        main.write_text(f"include {self.conf}/*.conf\n")
        subprocess.run(["tgt-admin", "-e", "-c", str(main)], check=True, stdout=subprocess.DEVNULL)

    def restart(self):
        self.daemon.kill()
        self.daemon.wait()
        self.start()

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.base)

    def url(self, name="a", login=""):
        return f"iscsi://{login}127.0.0.1:{self.port}/{PREFIX}:{name}/1"

    def ask(self, *argv):
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)

    def admin(self, act, thing, *words):
        """What tgtadm does with the target of number 1, or with an account that is to be made."""
        target = [] if (act, thing) == ("new", "account") else ["--tid", "1"]
        subprocess.run(["tgtadm", "--lld", "iscsi", *target, "--op", act, "--mode", thing, *words], check=True)

    def add_unit(self, lun, serial):
        """A logical unit of that target, named as module iscsi_volume names it."""
        path = self.data / f"{serial}.img"
        path.write_bytes(bytes(1 << 20))
        self.admin("new", "logicalunit", "--lun", str(lun), "-b", str(path))
        self.admin("update", "logicalunit", "--lun", str(lun), "--params", f"scsi_sn={serial},scsi_id={serial}")

    def log_in(self, name="a", login="", initiator="iqn.2026-11.test.vm:one"):
        """An initiator that reads as long as the test lasts."""
        argv = ["iscsi-perf", "-i", initiator, "-m", "4", "-b", "8", "-t", "60", self.url(name, login)]
        process = subprocess.Popen(argv, stdout=(self.base / "perf").open("w"), stderr=subprocess.STDOUT)
        self.processes.append(process)
        end, seen = time.monotonic() + 20, 0
        # Several looks: the first login of a session may be followed by a second one.
        while seen < 5:
            seen = seen + 1 if Tgt().targets()[f"{PREFIX}:{name}"].sessions else 0
            assert time.monotonic() < end and process.poll() is None, (self.base / "perf").read_text()
            time.sleep(0.05)
        return process

    def log_out(self, process, name="a"):
        process.send_signal(signal.SIGKILL)
        process.wait()
        while Tgt().targets()[f"{PREFIX}:{name}"].sessions:
            time.sleep(0.05)

    def state(self):
        """All that the module may change: what tgtd has, and every file with its content, mode and mark."""
        files = {}
        for path in sorted(self.base.rglob("*")):
            if path.is_file() and path.name not in ("log", "perf"):
                mark = os.getxattr(path, MARK) if MARK in os.listxattr(path) else None
                files[str(path)] = (path.read_bytes(), path.stat().st_mode, mark)
        return Tgt().targets(), Tgt().accounts(), files
