# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpack some collections out of the wheel that bundles them; the wheel goes.

Usage: unpack.py FOLDER NAMESPACE/NAME...
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
wanted = tuple(f"ansible_collections/{name}/" for name in sys.argv[2:])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder, [name for name in archive.namelist() if name.startswith(wanted)])
wheel.unlink()
