# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bridge of Open vSwitch: its options and where OVSDB keeps them, what it is, what it shall be, and what changes."""

from __future__ import annotations
