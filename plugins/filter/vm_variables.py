# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter vm_variables."""

from __future__ import annotations

from ansible_collections.drover.kvm.plugins.module_utils._domain.inventory import vm_variables


class FilterModule:
    """The filter as Ansible finds it."""

    def filters(self) -> dict[str, object]:
        """Its name and its function."""
        return {"vm_variables": vm_variables}
