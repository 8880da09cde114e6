# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second folder of backups, with real files and images."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils._backup import copies, files, store
from ansible_collections.drover.kvm.plugins.modules import backup_copy

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


class Rooms:
    """Two folders of backups."""

    def __init__(self, folder: Path, capsys: Any) -> None:
        self.one, self.two, self.capsys = folder / "one", folder / "two", capsys
        self.one.mkdir()
        self.two.mkdir()

    def make(self, day: int, base: int | None = None, uuid: str = "u1", root: Path | None = None) -> str:
        """A backup of that day; `base`: the day of the full one that it is based on."""
        name, below = f"202611{day:02}T030000Z", None if base is None else f"202611{base:02}T030000Z"
        place = (root or self.one) / "web1" / name
        place.mkdir(parents=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(place / "vda.qcow2"), f"{day}M"], check=True)
        (place / "domain.xml").write_text("<domain/>")
        manifest = {"id": name, "vm": {"name": "web1", "uuid": uuid}, "base": below, "history": below or name}
        disks = [{"target": "vda", "file": "vda.qcow2", "size": day << 20}]
        files.seal(place, {**manifest, "disks": disks}, "How to come back")
        return name

    def there(self, root: Path | None = None) -> list[str]:
        place = (root or self.two) / "web1"
        return sorted(one.name for one in place.iterdir() if one.name != store.LOCK) if place.exists() else []

    def run(self, **args: Any) -> dict[str, Any]:
        args = {"name": "web1", "path": str(self.one), "to": str(self.two), **args}
        with patch_module_args(args), pytest.raises(SystemExit):
            backup_copy.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    def both(self, **args: Any) -> dict[str, Any]:
        """As check mode said, and a second run changes nothing."""
        before, predicted = self.there(), self.run(**args, _ansible_check_mode=True)
        assert self.there() == before
        done = self.run(**args)
        assert not done.get("failed"), done["msg"]
        assert [predicted[key] for key in ("actions", "diff")] == [done[key] for key in ("actions", "diff")] != [[], {}]
        again = self.run(**args)
        assert not again["changed"] and again["lacking"] == []
        return done


@pytest.fixture
def rooms(tmp_path: Path, capsys: Any) -> Rooms:
    return Rooms(tmp_path, capsys)


def test_both_have_the_same_and_the_same_histories_go(rooms: Rooms) -> None:
    full, added = rooms.make(1), rooms.make(2, base=1)
    done = rooms.both()
    assert done["lacking"] == [full, added] == rooms.there() == done["backups"]
    for name in (full, added):
        one, two = (root / "web1" / name for root in (rooms.one, rooms.two))
        assert {path.name: path.read_bytes() for path in one.iterdir()} == {
            path.name: path.read_bytes() for path in two.iterdir()
        }
        assert (two.stat().st_mode & 0o777, {path.stat().st_mode & 0o777 for path in two.iterdir()}) == (0o700, {0o600})
    (rooms.two / "web1" / "notes.txt").write_text("not ours")
    second, third = rooms.make(3), rooms.make(4)
    done = rooms.both()
    assert [text.split()[0] for text in done["actions"]] == ["copy", "copy", "remove"], done
    assert rooms.there() == [second, third, "notes.txt"]
    assert rooms.there(rooms.one) == [full, added, second, third]  # it never removes there


def test_what_the_first_has_lost_the_second_keeps(rooms: Rooms) -> None:
    names = [rooms.make(1), rooms.make(2)]
    rooms.both()
    shutil.rmtree(rooms.one / "web1")
    assert not rooms.run()["changed"] and rooms.there() == names
    # Another machine has the name now: its backups don't drive out those of the one before.
    new = [rooms.make(day, uuid="u2") for day in (3, 4, 5)]
    rooms.both()
    assert rooms.there() == [*names, *new[-2:]]


def test_a_damaged_copy_is_made_anew_and_a_damaged_source_is_not_copied(rooms: Rooms) -> None:
    first, second = rooms.make(1), rooms.make(2)
    rooms.both()
    (rooms.two / "web1" / second / "vda.qcow2").unlink()
    done = rooms.both()
    assert done["lacking"] == [second] and store.verify(store.read(rooms.two, "web1")[1]) is None
    # Damage that shows only as it is read.
    third = rooms.make(3)
    image = rooms.one / "web1" / third / "vda.qcow2"
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    done = rooms.run()
    assert done["failed"] and f"the copy of {third}" in done["msg"] and "is not kept" in done["msg"], done
    assert rooms.there() == [first, second]
    store.note(store.read(rooms.one, "web1")[2], "damaged")
    assert not rooms.run()["changed"]


class Killed(BaseException):
    """The process ends here, and cleans up nothing."""


def test_a_run_that_is_killed_is_finished_by_the_next(rooms: Rooms, monkeypatch: Any) -> None:
    name = rooms.make(1)

    def die(*_args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(copies, "sync", die)
        patch.setattr(store, "clear", die)
        with pytest.raises(Killed):
            rooms.run()
    assert rooms.there() == [f".{name}.part"]
    done = rooms.both()
    assert done["actions"][0].startswith(f"clear .{name}.part") and rooms.there() == [name]


def test_what_is_refused_or_fails_leaves_all_as_it_was(rooms: Rooms, monkeypatch: Any) -> None:
    rooms.make(1)
    assert "same folder" in rooms.run(to=str(rooms.one))["msg"]
    assert "does not exist" in rooms.run(to="/nowhere/at/all")["msg"]

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        done = rooms.run()
        assert done["failed"] and "No space left" in done["msg"] and rooms.there() == [] and not done["changed"]
    rooms.make(1, uuid="other", root=rooms.two)
    assert "is no copy of" in rooms.run()["msg"]
