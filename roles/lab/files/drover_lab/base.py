# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cached base: a bare Debian, a local package repository for it, and a copy with the packages installed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from . import cgroups
from .run import LabError, lock, run, say
from .topology import Topology

BUILD_SECONDS = 1500
GUEST_PACKAGES = ["linux-image-cloud-amd64", "busybox-static", "qemu-guest-agent"]
# Their timers would take the package manager's lock at random moments.
MASKED = ["apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer"]


def cache_dir() -> Path:
    """Where everything heavy is kept: $DROVER_CACHE, else the user's cache directory."""
    cache = os.environ.get("DROVER_CACHE")
    if cache:
        return Path(cache) / "lab"
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "drover" / "lab"


def recipe(topology: Topology) -> str:
    """The key of a base: everything that goes into it, this file's text included."""
    parts = [topology.suite, topology.base_packages, topology.packages, topology.more_packages]
    text = json.dumps(parts) + Path(__file__).read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Base:
    """The three folders ``root``, ``repo``, ``prepared`` of one recipe; made once, then only read."""

    def __init__(self, topology: Topology, lab: str) -> None:
        self.topology = topology
        self.lab = lab
        self.folder = cache_dir() / f"debian-{recipe(topology)}"
        self.root = self.folder / "root"
        self.repo = self.folder / "repo"
        self.guest_packages = self.folder / "guest-packages"
        self.prepared = self.folder / "prepared"

    def ensure(self, prepared: bool = False) -> Path:
        """The root folder to lay nodes over, made first if need be; another run that makes it is waited for."""
        wanted = self.prepared if prepared else self.root
        if wanted.exists():
            return wanted
        with lock(cache_dir() / "lock", BUILD_SECONDS):
            for stale in cache_dir().glob("build-*"):
                shutil.rmtree(stale)
            build = cache_dir() / f"build-{os.getpid()}"
            build.mkdir(parents=True)
            if not self.folder.exists():
                self._bare(build / "base")
                (build / "base").rename(self.folder)
            if prepared and not self.prepared.exists():
                self._prepare(build / "prepared")
                (build / "prepared").rename(self.prepared)
            shutil.rmtree(build)
        return wanted

    def _bare(self, folder: Path) -> None:
        say(f"making the bare Debian {self.topology.suite} (once)")
        root, repo, guest = folder / "root", folder / "repo", folder / "guest-packages"
        for made in (repo / "partial", guest / "partial"):
            made.mkdir(parents=True)
        self._run(
            [
                *("mmdebstrap", "--mode=root", "--variant=minbase", "--skip=cleanup/apt/lists"),
                f"--include={','.join(self.topology.base_packages)}",
                '--aptopt=Acquire::Languages "none"',
                *(self.topology.suite, str(root)),
            ]
        )
        say("fetching the packages for the nodes' repository")
        for group in (self.topology.packages, *self.topology.more_packages):
            self._download(root, repo, list(group))
        self._download(root, guest, GUEST_PACKAGES)
        packages = self._run(["apt-ftparchive", "packages", "."], cwd=str(repo))
        (repo / "Packages").write_text(packages, encoding="utf-8")
        for made in (repo / "partial", guest / "partial"):
            made.rmdir()
        self._settle(root, repo)

    def _download(self, root: Path, into: Path, packages: list[str]) -> None:
        # Against the bare base: the closure is exactly what a bare node lacks.
        apt = ["apt-get", "-y", "--no-install-recommends", "--download-only", "-o", "Dir::Cache::archives=/packages"]
        bind = [f"--bind={into}:/packages", "--resolv-conf=copy-host"]
        self.inside(root, [*apt, "-o", "APT::Sandbox::User=root", "install", *packages], bind)

    def _settle(self, root: Path, repo: Path) -> None:
        """Make the base a node that knows only the local repository, and has no identity of its own."""
        shutil.rmtree(root / "etc/apt/sources.list.d", ignore_errors=True)
        (root / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/repo ./\n", encoding="utf-8")
        shutil.rmtree(root / "var/lib/apt/lists")
        (root / "etc/apt/apt.conf.d/90lab").write_text('Acquire::Languages "none";\n', encoding="utf-8")
        self.inside(root, ["apt-get", "update"], [f"--bind-ro={repo}:/repo"])
        self.inside(root, ["systemctl", "enable", "systemd-networkd.service", "ssh.service"], [])
        self.inside(root, ["systemctl", "mask", *MASKED], [])
        for key in (root / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        (root / "etc/machine-id").write_text("", encoding="ascii")
        (root / "etc/resolv.conf").unlink(missing_ok=True)

    def _prepare(self, folder: Path) -> None:
        say("installing the packages into a second base (once)")
        self._run(["cp", "-a", str(self.root), str(folder)])
        policy = folder / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
        policy.chmod(0o755)
        apt = ["apt-get", "-y", "--no-install-recommends", "install", *self.topology.packages]
        self.inside(folder, apt, [f"--bind-ro={self.repo}:/repo", "--setenv=DEBIAN_FRONTEND=noninteractive"])
        policy.unlink()
        for archive in (folder / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        (folder / "etc/machine-id").write_text("", encoding="ascii")

    def inside(self, root: Path, argv: list[str], options: list[str]) -> str:
        """Run a program in a root folder of the cache and return its output."""
        nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--timezone=off"]
        return self._run([*nspawn, *options, "-D", str(root), "--", *argv])

    def _run(self, argv: list[str], cwd: str | None = None) -> str:
        # Mounts of a build that is killed must not outlive it, nor its processes (they are in the lab's cgroup).
        isolated = ["unshare", "--mount", "--fork", "--kill-child=KILL", "--", *argv]
        env = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"}
        try:
            return run(cgroups.inside(self.lab, "build", isolated), timeout=BUILD_SECONDS, env=env, cwd=cwd).stdout
        except LabError as error:
            raise LabError(f"making {self.folder}: {error}") from error
