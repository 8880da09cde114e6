# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kind of storage says about itself: a new kind is a file beside this one and a line in `_domain/disks.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable
from xml.etree.ElementTree import Element

from .._fields import Field


@dataclass(frozen=True)
class Kind:
    """One kind of storage behind a disk.

    `fields` are its own options, `needs` those without which a new disk can't be. `recognises` tells its disks in
    domain XML, `source` makes the empty XML of a new one, `fill` (options, VM's name, the disk's number) completes the
    options of a new one, and `identity` is the name by which the storage is the same on every node.
    """

    name: str
    fields: tuple[Field, ...]
    needs: tuple[str, ...]
    recognises: Callable[[Element], bool]
    source: Callable[[], Element]
    fill: Callable[[dict[str, Any], str, int], dict[str, Any]]
    identity: Callable[[dict[str, Any]], str | None]
