# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the most that a running VM can have of something was given, and so stays when the VM has less. Pure.

libvirt writes down no maximum beside a number that has reached it. Then the record of the VM says that it was given.
"""

from __future__ import annotations

from typing import NamedTuple
from xml.etree.ElementTree import Element

from . import metadata

GIVEN = "given"


class Most(NamedTuple):
    """A maximum, by the name of its option."""

    name: str

    def is_given(self, root: Element, most: int, has: int | None) -> bool:
        """Whether it was given to a VM that has so many of at most so many."""
        return has is not None and (most != has or self._marked(root))

    def mark(self, root: Element, reached: bool) -> None:
        """Write down that it was given, where the VM has reached it."""
        if reached != self._marked(root):
            metadata.edit(root, {self.name: GIVEN if reached else None})

    def _marked(self, root: Element) -> bool:
        return metadata.read(root).get(self.name) == GIVEN
