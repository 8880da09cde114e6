# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The locks of a VM's logical volumes in shared groups, at a live migration.

Both nodes hold them as shared ones while it lasts. The hook drover-devices of role hypervisor takes them on the other
node, gives them back on this one when the VM has gone, and at the end makes them exclusive again on the node that has
the VM, also when the migration did not come to its end.
"""

from __future__ import annotations

from .._errors import DroverError, Failed
from .._run import run
from .order import Order

HOOK = "/etc/libvirt/hooks/qemu.d/drover-devices"
# A node that is late joins the locks first.
SECONDS = 180


def share(order: Order) -> None:
    """Turn the exclusive locks of the VM's volumes into shared ones. Raises Failed."""
    locks = [str(device["lock"]) for device in order.devices if device["lock"]]
    try:
        run([HOOK, order.vm, "share", order.uuid, *locks], timeout=SECONDS)
    except DroverError as error:
        raise Failed(f"{', '.join(locks)} can't be shared with {order.target}: {error.message}") from None
