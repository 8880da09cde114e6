#!/usr/bin/python3
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring up, break and remove the embedded lab: ``lab.py --help``."""

import sys

from drover_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
