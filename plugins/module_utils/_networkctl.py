# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd-networkd on this machine: its files, its commands, and the kernel's links as it left them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._errors import Failed, NotFound
from ._files import replace_file, told
from ._run import run, run_json, run_list

FOLDER = Path("/etc/systemd/network")
# Sorted before what others write. Role open_vswitch writes 05-drover-*.
PREFIX = "06-drover-"
PENDING = Path("/run/drover/networkd-pending")
DEVICES = Path("/sys/class/net")
BONDING = Path("/proc/net/bonding")
IP_WORDS = {"multicast_snooping": "mcast_snooping"}


class Networkd:
    """The files that begin with PREFIX are ours; nothing here writes another one."""

    def files(self) -> dict[str, str]:
        """Our files: name -> text."""
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob(f"{PREFIX}*"))}

    def write(self, name: str, text: str) -> None:
        """Write one of our files; networkd runs as a user of its own and must read it. Raises Failed."""
        FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_file(FOLDER / f"{PREFIX}{name.removeprefix(PREFIX)}", text.encode(), mode=0o644)

    def remove(self, name: str) -> None:
        """Remove one of our files."""
        with suppress(FileNotFoundError):
            (FOLDER / f"{PREFIX}{name.removeprefix(PREFIX)}").unlink()

    def pending(self) -> bool:
        """Whether a change was begun and not brought to its end since the machine started."""
        return PENDING.exists()

    def begin(self) -> None:
        """Note that a change begins."""
        PENDING.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(PENDING, b"")

    def end(self) -> None:
        """The change is complete."""
        with suppress(FileNotFoundError):
            PENDING.unlink()

    def reload(self) -> None:
        """Let networkd read its files again, set up anew what has another file now, and make what is missing."""
        run(["networkctl", "reload"], timeout=60)

    def reconfigure(self, links: Iterable[str]) -> None:
        """Set links up anew, though their files are as before; networkd sets up by itself one that is new to it."""
        known = self.managed()
        there = [name for name in links if name in known and (DEVICES / name).exists()]
        if there:
            run(["networkctl", "reconfigure", *there], timeout=60)

    def delete(self, link: str) -> None:
        """Remove a device that is made by software; one that is gone is fine. Raises Failed."""
        if (DEVICES / link).exists():
            run(["ip", "link", "delete", "dev", link], timeout=30)

    def release(self, link: str, master: str) -> None:
        """Take a link out of that bridge or bond; one that is not there (any more) is fine. Raises Failed."""
        now = DEVICES / link / "master"
        if now.exists() and now.resolve().name == master:
            run(["ip", "link", "set", "dev", link, "nomaster"], timeout=30)

    def plug(self, link: str, master: str) -> None:
        """Put a link into a bridge or bond, if it is not in another one. Raises Failed.

        networkd of systemd 252 does not see that a link has left its bridge, and so does not plug it in again.
        """
        there = (DEVICES / link).exists() and (DEVICES / master).exists()
        if there and not (DEVICES / link / "master").exists():
            if (DEVICES / master / "bonding").is_dir():
                run(["ip", "link", "set", "dev", link, "down"], timeout=30)
            run(["ip", "link", "set", "dev", link, "master", master], timeout=30)
            run(["ip", "link", "set", "dev", link, "up"], timeout=30)

    def tune(self, bridge: str, settings: Mapping[str, str]) -> None:
        """Give a bridge that is there its settings; networkd of systemd 252 sets them only when it makes one.

        The settings are in the words of the kernel's files in /sys/class/net/BRIDGE/bridge. Raises Failed.
        """
        folder = DEVICES / bridge / "bridge"
        # A kernel that can't filter VLANs has no file for it.
        now = {key: told(folder / key) for key in settings if (folder / key).exists()}
        differ = {key: settings[key] for key, value in now.items() if value != settings[key]}
        if differ:
            words = [word for key, value in differ.items() for word in (IP_WORDS.get(key, key), value)]
            run(["ip", "link", "set", "dev", bridge, "type", "bridge", *words], timeout=30)

    def set_mtu(self, link: str, mtu: int) -> None:
        """Give a link an MTU in bytes. Raises Failed."""
        if (DEVICES / link).exists():
            run(["ip", "link", "set", "dev", link, "mtu", str(mtu)], timeout=30)

    def give(self, link: str, addresses: Iterable[str], routes: Iterable[list[str]]) -> None:
        """Give a link addresses and routes by hand, for links of which networkd knows nothing. Raises Failed."""
        run(["ip", "link", "set", "dev", link, "up"], timeout=30)
        for address in addresses:
            run(["ip", "address", "replace", address, "dev", link], timeout=30)
        for route in routes:
            run(["ip", "route", "replace", *route], timeout=30)

    def links(self) -> list[dict[str, Any]]:
        """The kernel's links with what their kind says, as `ip` prints them."""
        return run_list(["ip", "-json", "-details", "link", "show"])

    def vlans(self) -> list[dict[str, Any]]:
        """The VLANs of the ports of bridges, as `bridge` prints them; none where the kernel can't filter."""
        try:
            return run_list(["bridge", "-json", "vlan", "show"])
        except (Failed, NotFound):
            return []

    def managed(self) -> dict[str, dict[str, Any]]:
        """What networkd says of each link, by name: its state and the file that it took."""
        answer = run_json(["networkctl", "--json=short", "list"]) or {}
        return {link["Name"]: link for link in answer.get("Interfaces", []) if "Name" in link}

    def bond(self, name: str) -> dict[str, str]:
        """The settings of a bond of the kernel, the first word of each; empty when there is none."""
        folder = DEVICES / name / "bonding"
        return {path.name: (told(path).split() or [""])[0] for path in sorted(folder.glob("*"))}

    def bonds(self) -> dict[str, str]:
        """What the kernel tells of each of its bonds."""
        return {path.name: told(path) for path in sorted(BONDING.glob("*"))}

    def speed(self, link: str) -> int | None:
        """The speed of a link in Mbit/s; None when it has none or is down."""
        text = told(DEVICES / link / "speed")
        return int(text) if text.isdigit() and 0 < int(text) < 2**31 else None

    def carrier(self, link: str) -> bool:
        """Whether a cable is plugged in at both ends; the kernel refuses to say it of a link that is not set up."""
        return told(DEVICES / link / "carrier") == "1"
