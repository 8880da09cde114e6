# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypted backups, on the libvirt and QEMU of test_backup: what comes back, and what nobody sees without a key."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _run
from ansible_collections.drover.kvm.plugins.module_utils._backup import job, secrecy, store, taking
from ansible_collections.drover.kvm.plugins.module_utils._domain import metadata
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Refused
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse
from ansible_collections.drover.kvm.plugins.modules import restore
from ansible_collections.drover.kvm.tests.unit.images import qemu_img
from ansible_collections.drover.kvm.tests.unit.plugins.modules import test_backup
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_backup import Killed, Machine

pytestmark = test_backup.pytestmark
daemon, machine = test_backup.daemon, test_backup.machine
running, alone = test_backup.running, test_backup.alone
PHRASE = "correct horse, b'attery $taple ä"
LOCK = {"encryption": "luks", "passphrase": PHRASE}


@pytest.fixture(autouse=True)
def said(monkeypatch: Any) -> Iterator[list[str]]:
    """All arguments of the programs that were run; no secret was in one."""
    found: list[str] = []
    start = _run._Command.__init__

    def begin(self: Any, argv: Any, reads: bool, tied: bool) -> None:
        found.extend(argv)
        start(self, argv, reads, tied)

    made: list[str] = []
    new_key = secrecy.new_key

    def note() -> str:
        made.append(new_key())
        return made[-1]

    monkeypatch.setattr(secrecy, "SLOW", 10)
    monkeypatch.setattr(_run._Command, "__init__", begin)
    monkeypatch.setattr(secrecy, "new_key", note)
    yield found
    assert not [word for word in found if PHRASE in word or any(key in word for key in made)]


@pytest.fixture
def small(machine: Machine) -> Machine:
    """With one disk, as each that is made costs seconds."""
    del machine.formats["vdb"]
    machine.define()
    machine.vm.create()
    return machine


def in_clear(folder: Path) -> list[str]:
    """The files with something of the guest, or of its definition."""
    found = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        data = path.read_bytes()
        if b"<domain" in data or b"52:54:00:00:00:01" in data or any(bytes([one]) * 512 in data for one in range(1, 9)):
            found.append(path.name)
    return found


def by_readme(machine: Machine, folder: Path) -> bytes:
    """What the commands of README.txt make of vda, and its definition; no code of this collection."""
    out = machine.folder / folder.name
    out.mkdir()
    text = (folder / "README.txt").read_text(encoding="utf-8")
    for place, own in (("/var/lib/libvirt/images", out), ("/dev/shm/web1", out / "beside")):
        text = text.replace(place, str(own))
    # What a command is for stands behind some of them.
    lines = [line.strip().split("    ")[0] for line in text.splitlines() if line.startswith("  ")]
    script = "\n".join(["set -e", *(line for line in lines if line.split()[0] not in ("virsh", "rm"))])
    subprocess.run(["bash", "-c", script], cwd=folder, input=f"{PHRASE}\n", text=True, check=True)
    assert "<name>web1</name>" in (out / "beside" / "domain.xml").read_text(encoding="utf-8")
    return machine.raw(out / "web1-vda.qcow2")


def test_each_point_of_a_chain_comes_back_by_the_commands_of_its_readme(small: Machine) -> None:
    seen = {}
    for number in range(3):
        small.write(number + 1, f"{number}M")
        seen_now = small.content()
        done = small.take(**LOCK, type="incremental")
        assert done["backup"]["encryption"] == "luks" and PHRASE not in str(done)
        assert done["backup"]["type"] == ("incremental" if number else "full"), done
        seen[done["backup"]["id"]] = seen_now
    place = small.root / "web1"
    last = place / max(seen)
    assert in_clear(small.root) == [] and small.connection.listAllSecrets() == []
    assert {one.stat().st_mode & 0o777 for one in last.iterdir()} == {0o600}
    assert sorted(one.name for one in last.iterdir()) == sorted(
        ["README.txt", "SHA256SUMS", "manifest.json", "state.luks", "vda.qcow2"]
    )
    for backup_id, kept in seen.items():
        assert by_readme(small, place / backup_id) == kept
    # A history goes on with its passphrase only.
    for check in (True, False):
        wrong = small.run(encryption="luks", passphrase="wrong", type="incremental", _ansible_check_mode=check)
        assert wrong["failed"] and f"{last.name} was made with another passphrase" in wrong["msg"], wrong
        assert small.there() == sorted(seen)
    clear = small.take(type="incremental")["backup"]
    assert clear["type"] == "full" and clear["reason"] == f"the last one, {last.name}, is encrypted"
    again = small.run(**LOCK, type="incremental", _ansible_check_mode=True)
    assert f"full (the last one, {clear['id']}, is not encrypted)" in again["actions"][0]
    # Checksums need no passphrase.
    assert small.run(state="verified")["damaged"] == {}
    (last / "state.luks").write_bytes(b"rot")
    assert "state.luks" in small.run(state="verified")["damaged"][last.name]


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("passphrase is missing, without which encryption: luks", {"encryption": "luks"}),
        ("encryption: luks is missing, without which passphrase", {"passphrase": PHRASE}),
        ("can't compress what it encrypts", {**LOCK, "compression": "zstd"}),
        ("one line", {**LOCK, "passphrase": "two\nlines"}),
        ("not empty", {**LOCK, "passphrase": ""}),
    ],
)
def test_what_does_not_fit_is_refused(machine: Machine, words: str, args: dict[str, Any]) -> None:
    done = machine.run(**args)
    assert done["failed"] and words in done["msg"] and machine.there() == [], done


def test_one_that_is_killed_leaves_nothing_in_clear(small: Machine, monkeypatch: Any) -> None:
    small.write(3)

    def die(*_args: Any, **_named: Any) -> None:
        raise Killed

    for place in ((Node, "undefine_secret"), (job, "wait")):
        with monkeypatch.context() as patch:
            patch.setattr(*place, die)
            patch.setattr(taking, "recover", die)
            with pytest.raises(Killed):
                small.run(**LOCK)
        assert len(small.connection.listAllSecrets()) == (place[0] is Node)
        left = store.left(small.root, "web1")
        assert len(left) == 1 and in_clear(small.root) == []
        taking.recover(Node(small.connection, "n1"), "web1", left[0])
        assert small.there() == [] and small.connection.listAllSecrets() == [] and small.vm.isActive()


def test_it_is_restored_with_its_passphrase_only(alone: Machine) -> None:
    kept, new = {target: alone.content(target) for target in alone.formats}, alone.folder / "new"
    new.mkdir()
    made = alone.take(**LOCK)["backup"]["id"]
    to: dict[str, Any] = {"name": "web1", "path": str(alone.root), "new_name": "web2", "directory": str(new)}
    for words, args in (("is encrypted; say the passphrase", {}), ("another passphrase", {"passphrase": "wrong"})):
        refused = alone.call(restore.main, **to, **args)
        assert refused["failed"] and words in refused["msg"] and list(new.iterdir()) == [], refused
    done = alone.call(restore.main, **to, passphrase=PHRASE)
    assert not done.get("failed") and PHRASE not in str(done), done
    assert {target: alone.raw(new / f"drover-web2-{at}.qcow2") for at, target in enumerate(kept)} == kept
    found = alone.connection.lookupByName("web2")
    assert metadata.read(parse(found.XMLDesc(0)))["restored"] == made
    found.create()
    assert not alone.call(restore.main, **to, passphrase=PHRASE)["changed"]


def test_one_that_is_off_is_encrypted_as_it_is_read(machine: Machine) -> None:
    del machine.formats["vdb"]
    machine.formats["vda"] = "raw"
    machine.disk("vda").write_bytes(b"\x05" * (2 << 20))
    machine.define()
    made = machine.take(**LOCK, bandwidth="1GiB")["backup"]
    assert made["encryption"] == "luks" and in_clear(machine.root) == []
    image = machine.root / "web1" / made["id"] / "vda.qcow2"
    key = secrecy.unlock(image.with_name(secrecy.STATE), PHRASE)[secrecy.KEY].decode()
    with secrecy.told(key) as told:
        qemu_img("compare", *told, "-f", "raw", "-F", "qcow2", machine.disk("vda"), secrecy.address(image, key))


def test_qemu_is_asked_again_where_it_could_not_measure(monkeypatch: Any) -> None:
    asked = []

    def run(*_args: Any, **_named: Any) -> str:
        asked.append(1)
        raise Failed(secrecy.UNMEASURED if len(asked) < 3 else "no room")

    monkeypatch.setattr(secrecy, "run", run)
    with pytest.raises(Failed, match="no room"):
        secrecy.making(["qemu-img"])
    assert len(asked) == 3
    monkeypatch.setattr(secrecy, "TRIES", 2)
    asked.clear()
    with pytest.raises(Failed, match="accurate"):
        secrecy.making(["qemu-img"])


def test_what_the_passphrase_opens(tmp_path: Path) -> None:
    place, parts = tmp_path / "20261122T030000Z" / secrecy.STATE, {"domain.xml": b"<domain/>", "nvram.fd": bytes(3000)}
    place.parent.mkdir()
    secrecy.lock(parts, place, PHRASE)
    assert secrecy.unlock(place, PHRASE) == parts
    with pytest.raises(Refused, match="20261122T030000Z was made with another"):
        secrecy.unlock(place, "wrong")
    place.write_bytes(b"no container")
    with pytest.raises(Failed, match="qemu-img failed"):
        secrecy.unlock(place, PHRASE)
