# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab and the cluster of the stories (tests/lab), for what takes longer."""

from __future__ import annotations

from ansible_collections.drover.kvm.tests.lab.conftest import cluster, lab, mover, quorum, site, traveller

__all__ = ["cluster", "lab", "mover", "quorum", "site", "traveller"]
