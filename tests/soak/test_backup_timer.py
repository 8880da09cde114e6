# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role backup on a machine with a real systemd: its timers run what they say, also what was missed, and go again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, Played, wait_until

NODE, PROGRAM, SAID = "hv3", "/usr/local/bin/recorder", "/var/tmp/recorder"
# In the place of ansible-playbook: notes how it was called, and fails where it is told so.
RECORDER = f"""#!/usr/bin/python3
import json, os, pwd, sys
with open("{SAID}", "a") as out:
    out.write(json.dumps([pwd.getpwuid(os.getuid()).pw_name, os.getcwd(), sys.argv[1:]]) + "\\n")
sys.exit(int("fail" in sys.argv))
"""
ODD = """x=100% "$HOME" 'a' \\b ${USER} %n"""
PLAY = [{"hosts": NODE, "gather_facts": False, "roles": ["drover.kvm.backup"]}]
PLACE = {"backup_inventory": "/srv/inventory", "backup_directory": "/srv"}
SETTINGS = {**PLACE, "backup_program": PROGRAM, "backup_user": "daemon"}


class Timers:
    """The machine."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.book = cluster, folder / "timers.yml"
        self.book.write_text(json.dumps(PLAY), encoding="utf-8")

    def ssh(self, command: str, check: bool = True) -> str:
        return self.cluster.ssh(NODE, command, check=check).strip()

    def apply(self, *timers: dict[str, Any], check: bool = False) -> Played:
        """The role."""
        options = ["--check"] if check else []
        return self.cluster.play(str(self.book), *options, **SETTINGS, backup_timers=list(timers)).good()

    def said(self) -> list[Any]:
        """How the program was called."""
        return [json.loads(line) for line in self.ssh(f"cat {SAID}", check=False).splitlines()]

    def units(self) -> list[str]:
        return self.ssh("ls /etc/systemd/system | grep ^drover-", check=False).split()


@pytest.fixture
def timers(lab: Lab, tmp_path: Path) -> Iterator[Timers]:
    found = Timers(Cluster(lab), tmp_path)
    write = f"cat >{PROGRAM}; chmod 755 {PROGRAM}; rm -f {SAID}; install -m 666 /dev/null {SAID}"
    found.cluster.ssh(NODE, write, stdin=RECORDER)
    # Somebody else's, with a name that begins alike.
    found.ssh("printf '[Timer]\\nOnCalendar=yearly\\n' >/etc/systemd/system/drover-own.timer")
    yield found
    found.apply()
    found.ssh(f"rm -f {PROGRAM} {SAID} /etc/systemd/system/drover-own.timer; systemctl daemon-reload")


def test_timers_run_their_playbooks_and_go_again(timers: Timers) -> None:
    often = {"name": "often", "schedule": "*:*:0/5", "arguments": ["-e", ODD]}
    broken = {"name": "broken", "schedule": "*:*:0/5", "playbook": "verify_backups", "arguments": ["fail"]}
    assert timers.apply(often, broken, check=True).changed and timers.units() == ["drover-own.timer"]
    assert timers.apply(often, broken).changed
    assert timers.apply(often, broken).changed == 0
    wanted = ["daemon", "/srv", ["-i", "/srv/inventory", "drover.kvm.backup", "-e", ODD]]
    wait_until(lambda: wanted in timers.said() or timers.said(), 150, "the timer runs backup, word by word")
    failed = ["daemon", "/srv", ["-i", "/srv/inventory", "drover.kvm.verify_backups", "fail"]]
    wait_until(lambda: failed in timers.said() or timers.said(), 150, "the other timer runs verify_backups")
    # It runs again and again, and is no failure while it does.
    seen = "systemctl --failed --plain -q"
    wait_until(lambda: "drover-backup-broken.service" in timers.ssh(seen) or timers.ssh(seen), 60, "systemd shows that")
    listed = timers.ssh("systemctl list-timers --plain -q 'drover-backup-*'")
    assert "drover-backup-often.timer" in listed and "drover-backup-broken.timer" in listed, listed

    # What was missed while the machine was off is run when it is up again.
    daily = {"name": "often", "schedule": "daily", "arguments": ["missed"]}
    assert timers.apply(daily).changed and timers.apply(daily).changed == 0
    assert [one for one in timers.units() if "broken" in one] == []
    stamp = "/var/lib/systemd/timers/stamp-drover-backup-often.timer"
    missed = ["daemon", "/srv", ["-i", "/srv/inventory", "drover.kvm.backup", "missed"]]
    assert missed not in timers.said()
    timers.ssh(f"systemctl stop drover-backup-often.timer; touch -d '3 days ago' {stamp}")
    timers.ssh("systemctl start drover-backup-often.timer")
    wait_until(lambda: missed in timers.said() or timers.said(), 60, "what was missed is run")

    assert timers.apply().changed and timers.apply().changed == 0
    assert timers.units() == ["drover-own.timer"]
    assert "drover-backup" not in timers.ssh("systemctl list-units --all --plain -q 'drover-backup-*.timer'")
