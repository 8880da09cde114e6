# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of module ovs_bridge: it confirms a change made with confirm_timeout."""

from __future__ import annotations

from ansible_collections.drover.kvm.plugins.plugin_utils._confirm import ConfirmingAction


class ActionModule(ConfirmingAction):
    """All is the module's but the confirmation."""
