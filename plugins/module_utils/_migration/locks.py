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
from .._lvm import Lvm
from .._run import run
from .order import Order

HOOK = "/etc/libvirt/hooks/qemu.d/drover-devices"


def share(order: Order) -> None:
    """Turn the exclusive locks of the VM's volumes into shared ones. Raises Failed.

    What makes them exclusive again is started before, so that it does so whatever becomes of this program.
    """
    locks = [str(device["lock"]) for device in order.devices if device["lock"]]
    unit = f"--unit=drover-devices-{order.uuid}"
    # One that runs already, after the VM has just come here, does the same.
    run(["systemd-run", "--collect", "--quiet", unit, HOOK, "settle", order.vm, order.uuid, *locks], ok=(0, 1))
    lvm = Lvm()
    for lock in locks:
        try:
            vg, _slash, lv = lock.partition("/")
            lvm.activate(vg, lv, "sy")
        except DroverError as error:
            raise Failed(f"{lock} can't be shared with {order.target}: {error.message}") from None
