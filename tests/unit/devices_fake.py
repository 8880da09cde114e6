# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The block devices of a node, as files of sysfs and udev."""

from __future__ import annotations

from functools import partial

from ansible_collections.drover.kvm.plugins.module_utils import _blocks
from ansible_collections.drover.kvm.plugins.module_utils._blocks import Blocks
from ansible_collections.drover.kvm.plugins.module_utils._domain import neighbours

MIB = 2**20
WWID = "36001405ee27ff29e2f44851b1dc257c9"


class Devices:
    """The block devices of a node, as files."""

    def __init__(self, root):
        self.root = root
        for folder in ("dev/san", "dev/mapper", "proc/self", "run/udev/data", "sys/class/block"):
            (root / folder).mkdir(parents=True)

    def add(self, name, number, links=(), udev="", uuid="", label=""):
        size = 64 * MIB
        folder = self.root / "sys/class/block" / name
        folder.mkdir()
        (folder / "dev").write_text(number)
        (folder / "size").write_text(str(size // 512))
        if uuid:
            (folder / "dm").mkdir()
            (folder / "dm/uuid").write_text(uuid)
            (folder / "dm/name").write_text(label)
        (self.root / "dev" / name).write_text("")
        lines = [f"E:ID_SERIAL={udev}" if udev else "", *(f"S:{link}" for link in links)]
        (self.root / f"run/udev/data/b{number}").write_text("\n".join(lines))
        for link in links:
            (self.root / "dev" / link).symlink_to(self.root / "dev" / name)

    def by_iscsi(self, name, target, lun, session=1):
        """The device came by a session with this target."""
        root, host = self.root, f"{session + 1}:0:0:{lun}"
        (root / f"sys/class/iscsi_session/session{session}").mkdir(parents=True)
        (root / f"sys/class/iscsi_session/session{session}/targetname").write_text(f"{target}\n")
        place = root / f"sys/devices/platform/host{session + 1}/session{session}/target{host[:-2]}/{host}/block"
        place.mkdir(parents=True)
        (root / "sys/class/block" / name).rename(place / name)
        (root / "sys/class/block" / name).symlink_to(place / name)

    def hold(self, below, above):
        (self.root / "sys/class/block" / below / "holders" / above).mkdir(parents=True)
        (self.root / "sys/class/block" / above / "slaves" / below).mkdir(parents=True)


def installed(root, monkeypatch, *kinds):
    """Block devices below a folder, which these kinds of disks take for the node's."""
    found = Devices(root)
    for place in kinds:
        monkeypatch.setattr(place, "Blocks", partial(Blocks, found.root))
    monkeypatch.setattr(neighbours, "other_names", partial(_blocks.other_names, blocks=Blocks(found.root)))
    return found
