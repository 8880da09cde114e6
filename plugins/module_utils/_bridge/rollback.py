# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change of a bridge that takes itself back unless somebody confirms it in time: the rows as they were."""

from __future__ import annotations

from .. import _errors, _fields, _ovs
from .._rollback import claim
from .._rollback.timer import Undo
from . import checks, options, queues, restore, rows

PARTS = {
    "": {"_errors": _errors, "_fields": _fields, "_ovs": _ovs},
    "_rollback/": {"claim": claim},
    "_bridge/": {"checks": checks, "options": options, "queues": queues, "restore": restore, "rows": rows},
}


def of(name: str) -> Undo:
    """What takes back a change of the bridge."""
    return Undo("ovs", name, f"bridge {name}", PARTS, "_bridge.restore")
