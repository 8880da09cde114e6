# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to do about a VM's seed: make it before the VM is defined, delete it with the VM."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from xml.etree.ElementTree import Element

from .. import _seed
from .._disks import file
from .._errors import Invalid
from .._resource import Step
from .._xml import Property
from . import cloud_init


def making(
    options: Mapping[str, Any] | None, before: Element | None, after: Element, running: Element | None
) -> list[Step]:
    """The step that writes one VM's seed, where its options want it and it is not there; without options it stays.

    `before` is the definition (None for a new VM), `after` the one that shall be, `running` what runs and goes on.
    Raises Invalid where it is to be removed before it was there.
    """
    if options is not None and options["remove"] and before is None:
        raise Invalid(
            "cloud_init.remove is for a machine that is set up; a new one would never be", option="cloud_init"
        )
    told = cloud_init.read(after)
    if options is None or told is None or told["medium"] is None:
        return []
    path, uuid = told["medium"], Property("uuid").get(after)
    known = None if before is None else cloud_init.read(before)
    fresh = known is None or known["digest"] != told["digest"]
    # A VM that runs has read it, or came from another node; it needs none.
    if not fresh and (running is not None or _seed.mark(path) == uuid):
        return []
    return [Step(f"make the seed {path}", partial(_seed.make, path, uuid, cloud_init.texts(after, options)))]


def left(name: str, uuid: str) -> list[str]:
    """The file of this VM's seed, if there is one."""
    return _seed.left(file.seed_path(name), uuid)


def ejected(options: Mapping[str, Any] | None, name: str, uuid: str) -> list[Step]:
    """The step that deletes the seed of a VM that has been set up, after it was taken out of its drive."""
    return removal(name, uuid) if options is not None and options["remove"] else []


def removal(name: str, uuid: str) -> list[Step]:
    """The step that deletes it."""
    return [Step(f"delete {path}", partial(_seed.remove, path, uuid)) for path in left(name, uuid)]
