# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring up, break and remove the embedded lab: ``python3 lab.py --help``."""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    runpy.run_module("drover_lab", run_name="__main__")
