# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to do about a VM's seed: make it before the VM is defined, take it out when the guest is done, delete it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Callable
from xml.etree.ElementTree import Element

from .. import _seed
from .._disks import file
from .._errors import Failed
from .._libvirt import Domain, Node
from .._resource import Step
from .._xml import Property, parse, text_of
from . import cloud_init


class Seeding:
    """The seed of one VM as its options want it; without options it stays as it is.

    `before` is the definition (None for a new VM), `after` the one that shall be, `running` what runs and goes on.
    """

    def __init__(self, options: Mapping[str, Any] | None, before: Element | None, after: Element) -> None:
        self.options = options
        self.before = None if before is None else cloud_init.read(before)
        self.after = after
        self.files: dict[str, str] | None = None
        self.leaves = False

    def plan(self, state: dict[str, Any], running: Element | None) -> None:
        """Decide; `state`, what the VM will be, tells then whether the seed will be in its drive."""
        told = state["seed"]
        if self.options is None or told["medium"] is None:
            return
        fresh = self.before is None or self.before["digest"] != told["digest"]
        # A VM that runs has read it, or came from another node; it needs none.
        if fresh or (running is None and _seed.mark(told["medium"]) != state["uuid"]):
            self.files = cloud_init.texts(self.after, self.options)
        given = told if running is None else cloud_init.read(running) or {}
        self.leaves = self.options["eject"] and state["state"] == "running" and given.get("digest") == told["digest"]
        if self.leaves:
            told["medium"] = None

    @property
    def vm(self) -> tuple[str, str]:
        """Its name and UUID."""
        return Property("name").get(self.after), Property("uuid").get(self.after)

    def make(self) -> list[Step]:
        """The step that writes the file."""
        told = cloud_init.read(self.after)
        if self.files is None or told is None:
            return []
        return [Step(f"make the seed {told['medium']}", partial(_seed.make, told["medium"], self.vm[1], self.files))]

    def eject(self, node: Node) -> list[Step]:
        """The steps that wait for the guest, and take the seed away."""
        if self.options is None or not self.leaves:
            return []
        name, uuid = self.vm
        steps = [Step(f"take the seed out of {name} and delete it", partial(_take_out, node, name, uuid))]
        if cloud_init.opens(self.after):
            limit = self.options["eject_timeout"]
            steps.insert(0, Step(f"wait until cloud-init is done in {name}", _nothing, _done(node, name), limit))
        return steps


def left(name: str, uuid: str) -> list[str]:
    """The file of this VM's seed, if there is one."""
    return _seed.left(file.seed_path(name), uuid)


def removal(name: str, uuid: str) -> list[Step]:
    """The step that deletes it."""
    return [Step(f"delete {path}", partial(_seed.remove, path, uuid)) for path in left(name, uuid)]


def _nothing() -> None:
    """A step that only waits."""


def _done(node: Node, name: str) -> Callable[[], bool | str]:
    def look() -> bool | str:
        live = _live(node.domain(name), name)
        return cloud_init.is_out(live) or "the guest has not opened the tray"

    return look


def _live(domain: Domain | None, name: str) -> Element:
    if domain is None or not domain.live_xml:
        raise Failed(f"{name} stopped before cloud-init was done; its seed stays in its drive")
    return parse(domain.live_xml)


def _take_out(node: Node, name: str, uuid: str) -> None:
    drive = cloud_init.without_medium(_live(node.domain(name), name))
    if drive is not None:
        node.update_device(name, text_of(drive), live=True, config=True)
    for path in left(name, uuid):
        _seed.remove(path, uuid)
