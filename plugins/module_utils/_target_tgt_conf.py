# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The volumes' files in tgt's configuration directory: what makes them come back when tgt starts.

One file per volume, mode 0600 as it holds the CHAP password. tgt-admin reads it when the service starts; a comment
line in it holds the marks (name, owner, UUID of the VM) as JSON. What a file may hold is narrow: tgt-admin passes the
words of it through a shell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._files import locked, replace_file
from ._target_tgt import LUN, NOBODY, Tgt

DIRECTORY = "/etc/tgt/conf.d"
HEAD = "# Written by drover.kvm.iscsi_volume; changes made here are lost.\n# drover: "
MARKED = (
    "name",
    "path",
    "serial",
    "size",
    "initiators",
    "chap_user",
    "mutual_chap_user",
    "readonly",
    "owner",
    "vm_uuid",
)
# Says in a file that its secrets may not be those that tgtd has: a run was changing them.
UNSURE = '"unsure": true, '
PASSWORD = re.compile(r"^ +(incoming|outgoing)user \S+ (\S+)$", re.MULTILINE)
TARGET_LINE = re.compile(r"^<target (\S+)>$", re.MULTILINE)


def render(volume: Mapping[str, Any]) -> str:
    """The file's text for a volume."""
    addresses = [rule for rule in volume["initiators"] if not rule.startswith(("iqn.", "eui.", "naa."))]
    lines = [
        HEAD + json.dumps({"version": 1, **{key: volume[key] for key in MARKED}}, sort_keys=True),
        f"<target {volume['iqn']}>",
        f"    <backing-store {volume['path']}>",
        f"        lun {LUN}",
        f"        scsi_id {volume['serial']}",
        f"        scsi_sn {volume['serial']}",
        f"        readonly {int(volume['readonly'])}",
        "    </backing-store>",
        # Otherwise the volume is missing after a restart when something, a backup for instance, reads its file.
        "    allow-in-use yes",
    ]
    if volume["chap_user"]:
        lines.append(f"    incominguser {volume['chap_user']} {volume['chap_password']}")
    if volume["mutual_chap_user"]:
        lines.append(f"    outgoinguser {volume['mutual_chap_user']} {volume['mutual_chap_password']}")
    lines += [f"    initiator-address {address}" for address in addresses or [NOBODY]]
    lines += [f"    initiator-name {rule}" for rule in volume["initiators"] if rule not in addresses]
    return "\n".join([*lines, "</target>", ""])


def parse(text: str) -> dict[str, Any] | None:
    """The volume in a file that `render` wrote; None for any other file."""
    target = TARGET_LINE.search(text)
    if not text.startswith(HEAD) or not target:
        return None
    try:
        volume = json.loads(text[len(HEAD) :].partition("\n")[0])
    except ValueError:
        return None
    passwords = {} if volume.pop("unsure", False) else dict(PASSWORD.findall(text))
    found = {"chap_password": passwords.get("incoming"), "mutual_chap_password": passwords.get("outgoing")}
    return {"mutual_chap_user": "", **volume, "iqn": target.group(1), **found}


class Store:
    """The configuration directory, such as /etc/tgt/conf.d, and the daemon that it configures."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.tgt = Tgt()
        self._volumes: dict[str, dict[str, Any]] | None = None
        self._portals: list[str] | None = None

    def portals(self) -> list[str]:
        """Where tgtd answers; nothing of ours changes it while this runs."""
        if self._portals is None:
            self._portals = sorted(self.tgt.portals())
        return list(self._portals)

    @classmethod
    @contextmanager
    def locked(cls, directory: str | None) -> Iterator[Store]:
        """One run at a time changes the volumes of a machine. Raises NotFound, or TimedOut when another run goes on."""
        with locked(Path(directory or DIRECTORY), "is tgt installed (role san_target)?"):
            yield cls(directory or DIRECTORY)

    def path(self, name: str) -> Path:
        """The file of the volume of that name."""
        return self.directory / f"drover-{name}.conf"

    def text(self, name: str) -> str | None:
        """The text of the volume's file; None without one, and when others may read it (so that it is written anew)."""
        try:
            path = self.path(name)
            return path.read_text(encoding="utf-8") if path.stat().st_mode & 0o077 == 0 else ""
        except FileNotFoundError:
            return None

    def volumes(self) -> dict[str, dict[str, Any]]:
        """All our volumes by name; nobody else changes them while this is locked."""
        if self._volumes is None:
            self._volumes = self._read()
        return dict(self._volumes)

    def _read(self) -> dict[str, dict[str, Any]]:
        found = {}
        for path in sorted(self.directory.glob("drover-*.conf")):
            volume = parse(path.read_text(encoding="utf-8", errors="replace"))
            if volume and self.path(volume["name"]) == path:
                found[volume["name"]] = volume
        return found

    def doubt(self, name: str) -> None:
        """Before tgtd gets another secret: what the file says of it is known no more, until the volume is saved.

        tgtd tells no secret. A run that was killed after it had the new one, and before it was saved, would leave a
        file that agrees with whoever takes the change back.
        """
        if (text := self.text(name)) and not text.startswith(f"{HEAD}{{{UNSURE}"):
            self._volumes = None
            replace_file(self.path(name), text.replace(f"{HEAD}{{", f"{HEAD}{{{UNSURE}", 1).encode())

    def save(self, volume: Mapping[str, Any]) -> None:
        """Write the volume's file: all of it or nothing, and readable by root only from its first byte."""
        self._volumes = None
        replace_file(self.path(volume["name"]), render(volume).encode())

    def forget(self, name: str) -> None:
        """Remove the volume's file."""
        self._volumes = None
        self.path(name).unlink(missing_ok=True)
