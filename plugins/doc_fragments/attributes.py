# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation blocks that the modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """How a module behaves in check and diff mode, said once for all."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode and returns what the real run would return, without changing anything.
  diff_mode:
    description: Returns details on what has changed (or would change in check mode) with C(--diff).
  idempotent:
    description: When run twice in a row, the second run reports no change.
  action_group:
    description: Use C(group/drover.kvm.kvm) in C(module_defaults) to set defaults for this module.
    membership: [drover.kvm.kvm]
"""

    KVM = r"""
options: {}
notes:
  - What it reads and changes is root's. Where Ansible comes as another user, use C(become=true).
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action_group:
    support: full
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    details: It only reads.
  diff_mode:
    support: N/A
    details: It changes nothing.
  idempotent:
    support: full
  action_group:
    support: full
"""
