# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change of the host's network that takes itself back unless somebody confirms it in time."""

from __future__ import annotations

from .. import _errors, _files, _lifelines, _networkctl, _run
from .._rollback import claim
from .._rollback.timer import Undo
from . import apply, restore

PARTS = {
    "": {"_errors": _errors, "_files": _files, "_lifelines": _lifelines, "_networkctl": _networkctl, "_run": _run},
    "_rollback/": {"claim": claim},
    "_networkd/": {"apply": apply, "restore": restore},
}
UNDO = Undo("networkd", "host", "the host's network", PARTS, "_networkd.restore", whole=False)
