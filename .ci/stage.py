# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mirror a checkout's files (tracked, or untracked and not ignored) into a folder, copying what changed.

Usage: stage.py CHECKOUT FOLDER
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path


def listed(checkout: Path) -> set[Path]:
    """Return the files that git would know of, relative to the checkout."""
    command = ["git", "-C", str(checkout), "ls-files", "-z", "-co", "--exclude-standard"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    names = {Path(os.fsdecode(name)) for name in output.split(b"\0") if name}
    return {name for name in names if os.path.lexists(checkout / name)}


def same(one: Path, other: Path) -> bool:
    """Tell whether both are links to one place, or files of one size, time and mode."""
    if not os.path.lexists(other) or one.is_symlink() != other.is_symlink():
        return False
    if one.is_symlink():
        return one.readlink() == other.readlink()
    here, there = one.stat(), other.stat()
    return (here.st_size, here.st_mtime_ns, here.st_mode) == (there.st_size, there.st_mtime_ns, there.st_mode)


def mirror(checkout: Path, folder: Path) -> None:
    """Make the folder hold the listed files and nothing else, but what ansible-test is writing there meanwhile."""
    wanted = listed(checkout)
    kept = {folder / parent for name in wanted for parent in name.parents}
    output = folder / "tests/output"
    for path in sorted(folder.rglob("*"), reverse=True):
        if path == output or output in path.parents:
            continue
        if path.is_dir() and not path.is_symlink():
            if path not in kept:
                path.rmdir()
        elif path.relative_to(folder) not in wanted:
            path.unlink()
    for name in wanted:
        if not same(checkout / name, folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, folder / name, follow_symlinks=False)


def main() -> None:
    """Mirror under a lock, and drop the stages of checkouts that are gone."""
    checkout, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    root = folder.parents[2]
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (root / "checkout").write_text(str(checkout))
        mirror(checkout, folder)
    for mark in root.parent.glob("stage-*/checkout"):
        if not Path(mark.read_text()).is_dir():
            shutil.rmtree(mark.parent, ignore_errors=True)


main()
