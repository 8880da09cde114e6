# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease in a VM's definition. Ours has the VM's UUID for its key; others are left as they are. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

from .._xml import Property, add_device, devices, drop, make

# libvirt names the file in three parts: the directory above the lockspace, the lockspace's own name, the key.
ABOVE, LOCKSPACE, KEY = Property("target/@path"), Property("lockspace"), Property("key")


def read(root: Element) -> str | None:
    """The path of the VM's lease, or None."""
    parts = [[place.get(lease) or "" for place in (ABOVE, LOCKSPACE, KEY)] for lease in _own(root)]
    return str(PurePosixPath(*parts[0])) if parts else None


def write(root: Element, path: str | None) -> None:
    """Give the VM this one lease. None leaves what is there: where there are no leases, libvirt does not look at it."""
    own = _own(root)
    if path is None or (len(own) == 1 and read(root) == path):
        return
    for lease in own:
        drop(make(root, "devices"), lease)
    file, lease = PurePosixPath(path), Element("lease")
    for place, value in ((LOCKSPACE, file.parent.name), (KEY, file.name), (ABOVE, str(file.parent.parent))):
        place.put(lease, value)
    add_device(root, lease)


def _own(root: Element) -> list[Element]:
    uuid = Property("uuid").get(root)
    return [lease for lease in devices(root, "lease") if uuid and KEY.get(lease) == uuid]
