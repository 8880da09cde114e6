# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all targets of one run share: the node's initiator and devices, and what the portals offer."""

from __future__ import annotations

from ._blocks import Blocks
from ._errors import NotFound, Unreachable
from ._initiator import Initiator, Portal
from ._session_twins import Arrivals


class San:
    """The initiator and the block devices of this node, and what its portals were found to offer."""

    def __init__(self) -> None:
        self.initiator = Initiator()
        self.blocks = Blocks()
        self.arrivals = Arrivals(self.initiator)
        self.name = self.initiator.name()
        self.defaults = self.initiator.defaults()
        self.offered: dict[Portal, dict[str, int]] = {}
        self.listens: dict[Portal, bool] = {}

    def group(self, target: str, portal: Portal) -> int:
        """The portal group of a target at a portal. Raises NotFound, Unreachable."""
        if portal not in self.offered:
            self.offered[portal] = self.initiator.discover(portal)
        found = self.offered[portal]
        if target not in found:
            raise NotFound(
                f"the portal {portal} does not offer {target} to {self.name}; is it exported there, and is "
                f"this initiator let in? It offers {', '.join(sorted(found)) or 'nothing'}",
                offered=sorted(found),
            )
        return found[target]

    def answers(self, portal: Portal) -> bool:
        """Whether somebody listens at a portal; asked once, so that all targets go by one answer."""
        if portal not in self.listens:
            try:
                self.initiator.answers(portal)
                self.listens[portal] = True
            except Unreachable:
                self.listens[portal] = False
        return self.listens[portal]
