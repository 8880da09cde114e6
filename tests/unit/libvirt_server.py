# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private libvirtd for tests: its files lie in a mount namespace, and nothing is left when tests are killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.drover.kvm.plugins.module_utils._files import replace_file

COLLECTIONS = Path(__file__).resolve().parents[5]
OWN = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/run", "/var/log/libvirt", "/var/lib/swtpm-localca")
# What libvirtd has learnt of the programs of QEMU, by starting each of them some times, which takes seconds. Of what it
# finds here it sees for itself whether it is still true.
CAPABILITIES = "/var/cache/libvirt/qemu/capabilities"
KNOWN = Path(os.environ.get("DROVER_CACHE", "/nonexistent")) / "qemu-capabilities"
# Not where a libvirtd of the whole machine would answer until the mounts are made.
SOCKET = "/run/drover-private/libvirt-sock"
SOCKETS = """
unix_sock_dir = "/run/drover-private"
auth_unix_rw = "none"
auth_unix_ro = "none"
host_uuid = "00000000-0000-4000-8000-0000000000a1"
"""
# There may be no cgroups to hand out.
QEMU = """
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
START = """
extra=64055::/var/lib/libvirt:/usr/sbin/nologin
for place in {own}; do mkdir -p $place; mount -t tmpfs tmpfs $place; done
mkdir -p /var/log/libvirt/qemu /run/lock /run/drover-private {capabilities}
for file in {known}/*.xml; do [ ! -e $file ] || cp $file {capabilities}; done
printf %s '{sockets}' >/etc/libvirt/libvirtd.conf
printf %s '{qemu}' >/etc/libvirt/qemu.conf
# The guests' user, which comes with a package that also starts a libvirtd for the whole machine.
for file in passwd group; do
    cp /etc/$file /run/$file
    grep -q ^libvirt-qemu: /run/$file || echo "libvirt-qemu:x:64055:$extra" >>/run/$file
    mount --bind /run/$file /etc/$file
    extra=
done
exec libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirtd.pid
"""


def missing() -> str | None:
    """Why there can be no private libvirtd here."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [program for program in ("libvirtd", "setpriv", "unshare") if shutil.which(program) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return "mount namespaces are not allowed here" if probe.returncode else None


class Daemon:
    """The running libvirtd."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def uri(self, readonly: bool = False) -> str:
        """Where it answers."""
        return f"qemu+unix:///system?socket={self.path(SOCKET)}{'-ro' if readonly else ''}"

    def path(self, path: str) -> Path:
        """A file as the daemon sees it."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def freeze(self) -> None:
        """Let it hang as a stuck daemon does: the sockets take connections, nothing answers."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)


def _keep(learnt: Path) -> None:
    """For the daemons of later tests; several end at one time."""
    if KNOWN.parent.is_dir():
        KNOWN.mkdir(exist_ok=True)
        for path in learnt.glob("*.xml"):
            replace_file(KNOWN / path.name, path.read_bytes())


def _listens(path: Path) -> bool:
    """Whether it takes connections; the file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextmanager
def private_libvirtd() -> Iterator[Daemon]:
    """Start it, wait for its socket, end it."""
    script = START.format(own=" ".join(OWN), known=KNOWN, capabilities=CAPABILITIES, sockets=SOCKETS, qemu=QEMU)
    # It dies with the tests, also when those are killed.
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "-m", "sh", "-ec", script]
    with tempfile.TemporaryFile() as log:
        # A session of its own: the kernel lets a stopped process go on when its group loses its shell.
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        daemon = Daemon(process)
        try:
            end = time.monotonic() + 30
            while not _listens(daemon.path(SOCKET)):
                assert process.poll() is None and time.monotonic() < end, os.pread(log.fileno(), 1 << 20, 0).decode()
                time.sleep(0.05)
            yield daemon
            _keep(daemon.path(CAPABILITIES))
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
