# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bridge of Open vSwitch: its state as plain data (`rows`), and the rules of what it shall be (`rules`)."""

from __future__ import annotations
