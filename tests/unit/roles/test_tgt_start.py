# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of role san_target that completes each start of tgtd, against a real tgtd."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.drover.kvm.plugins.module_utils._target_tgt import Tgt
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt_conf import Store
from ansible_collections.drover.kvm.tests.unit import tgt_server
from ansible_collections.drover.kvm.tests.unit.role_variables import role_variable

pytestmark = pytest.mark.skipif(bool(tgt_server.missing()), reason=f"not here: {tgt_server.missing()}")
ROLE = Path(__file__).resolve().parents[3] / "roles/san_target"
PROGRAM = ROLE / "files/drover-tgt-start"
SECRET, MUTUAL = "hidden-Canary1", "hidden-Canary2"


@pytest.fixture
def san(monkeypatch):
    monkeypatch.setenv("TGT_IPC_SOCKET", "")
    private = tgt_server.PrivateSan()
    yield private
    private.close()


def start(*words, status=0):
    done = subprocess.run([sys.executable, PROGRAM, *words], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def test_it_listens_on_the_portals_and_nowhere_else(san):
    here, other = f"127.0.0.1:{san.port}", f"127.0.0.2:{san.port}"
    assert start(here) == ""
    assert start("--check", here, other) == f"listen on {other}\n" and Tgt().portals() == [here]
    assert start(other) == f"listen on {other}\nno longer listen on {here}\n" and Tgt().portals() == [other]
    assert start(other) == ""
    assert "is the address on this machine?" in start(other, f"192.0.2.1:{san.port}", status=1)


def test_portals_are_compared_in_the_form_in_which_tgtd_shows_them(san):
    """One without its port, or in long IPv6, is neither opened nor closed anew by each run."""
    asked = ["127.0.0.2", f"127.0.0.1:{san.port}", f"127.0.0.1:{san.port}"]
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        asked.append(f"[0:0:0:0::1]:{san.port}")
    except OSError:
        pass
    gates = role_variable(ROLE / "vars/main.yml", "san_target_gates", san_target_portals=asked)
    assert gates == ["127.0.0.2:3260", f"127.0.0.1:{san.port}", f"[::1]:{san.port}"][: len(asked) - 1]
    start(*gates[1:])
    assert sorted(Tgt().portals()) == sorted(gates[1:]) and start(*gates[1:]) == ""
    # Nobody but the argument's check knows the portals as they were given.
    files = [*ROLE.glob("tasks/*.yml"), *ROLE.glob("templates/*")]
    expressions = re.findall(r"\{[{%].*?[}%]\}", "".join(path.read_text(encoding="utf-8") for path in files), re.DOTALL)
    assert "san_target_gates" in str(expressions) and "san_target_portals" not in str(expressions)


def test_tgt_admin_finds_the_accounts_made_and_shows_no_secret(san, monkeypatch):
    """A tgtadm that notes its arguments: what tgt-admin does with a secret, without and with the program."""
    real = san.ask("which", "tgtadm").stdout.strip()
    noted = san.base / "noted"
    wrapper = san.base / "bin" / "tgtadm"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {noted}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    disk = san.data / "a.img"
    disk.write_bytes(bytes(1 << 20))
    iqn = f"{tgt_server.PREFIX}:a"
    keys: dict[str, object] = {"name": "a", "iqn": iqn, "path": str(disk), "serial": "0" * 16, "size": 1 << 20}
    rest: dict[str, object] = {
        "initiators": [],
        "chap_user": "u",
        "chap_password": SECRET,
        "mutual_chap_user": "san",
        "mutual_chap_password": MUTUAL,
        "readonly": False,
        "owner": None,
        "vm_uuid": None,
    }
    Store(str(san.conf)).save({**keys, **rest})
    main = str(san.base / "targets.conf")
    assert san.ask("tgt-admin", "-e", "-c", main).returncode == 0
    assert SECRET in noted.read_text()
    noted.unlink()
    Tgt().delete_target(iqn)
    Tgt().delete_account("u")
    Tgt().delete_account("san")
    assert start(f"--accounts={san.conf}") == "make the account u\nmake the account san\n"
    assert start(f"--accounts={san.conf}") == ""
    assert san.ask("tgt-admin", "-e", "-c", main).returncode == 0
    words = noted.read_text()
    assert SECRET not in words and MUTUAL not in words and Tgt().targets()[iqn].accounts == ["u"]


def test_check_mode_asks_the_daemon_of_a_server_that_lacks_the_program(san, tmp_path):
    tasks = yaml.safe_load((ROLE / "tasks/run_tgt.yml").read_text(encoding="utf-8"))
    as_is = {"changed": False}
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "san_target_portals": [f"127.0.0.2:{san.port}"],
            "san_target_installed": as_is,
            "san_target_started": as_is,
            "ansible_python_interpreter": sys.executable,
        },
        "vars_files": [str(ROLE / "vars/main.yml")],
        "tasks": [tasks[-1]],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    (tmp_path / "files").symlink_to(PROGRAM.parent)
    words = [sys.executable, "-m", "ansible", "playbook", "--check", "-v", str(tmp_path / "play.yml")]
    environment = {**os.environ, "ANSIBLE_LOCAL_TEMP": str(tmp_path), "ANSIBLE_REMOTE_TEMP": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 0, done.stdout
    assert "changed=1" in done.stdout and f"listen on 127.0.0.2:{san.port}" in done.stdout
    assert Tgt().portals() == [f"127.0.0.1:{san.port}"]
