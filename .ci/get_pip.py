# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-in for pip's bootstrap script: unpack the wheel that lies beside this file."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from pathlib import Path

wanted = next(argument for argument in sys.argv[1:] if argument.startswith("pip=="))
wheel = Path(__file__).with_name(wanted.replace("==", "-") + "-py3-none-any.whl")
with zipfile.ZipFile(wheel) as archive:
    archive.extractall(sysconfig.get_paths()["purelib"])
