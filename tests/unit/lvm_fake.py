# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LVM's commands, as far as the collection uses them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed

MIB = 2**20


class Lvm:
    """LVM's commands on one group `vg0` with a thin pool `pool0`; devices are files, and old data is `D`.

    With `lock` it is a shared one. `elsewhere` are the volumes that another node has, and how (ex or sh); `here` those
    that are active on this one.
    """

    vg = "vg0"

    def __init__(self, base: Path, extents: int = 64, lock: str = ""):
        self.base, self.extents, self.lock = base, extents, lock
        self.elsewhere: dict[str, str] = {}
        self.here: dict[str, str] = {}
        self.volumes: dict[str, dict[str, Any]] = {
            "pool0": {"size": 32, "tags": [], "layout": "thin,pool", "pool": "", "zero": "1"}
        }
        self.commands: list[str] = []

    extent = 2 * MIB

    def device(self, name):
        return self.base / name

    def free(self):
        thick = [item["size"] for item in self.volumes.values() if not item["pool"]]
        return self.extents - sum(thick)

    def run(self, argv, stdin=None, timeout=60):
        program, *words = argv
        self.commands.append(" ".join(argv))
        return getattr(self, program)(words)

    def report(self, argv, timeout=60):
        if argv[0] == "vgs":
            row = {"vg_name": self.vg, "vg_extent_size": str(self.extent), "vg_free": str(self.free() * self.extent)}
            row.update(vg_uuid="VG-UUID", vg_lock_type=self.lock, vg_size=str(self.extents * self.extent))
            return {"report": [{"vg": [row]}]}
        if argv[0] == "pvs":
            return {"report": [{"pv": [{"pv_name": "/dev/sdx", "vg_name": self.vg}]}]}
        if "lv_lockargs" in argv:
            return {"report": [{"lv": [{"lv_lockargs": "1.0.0:70254592"}]}]}
        if "seg_pe_ranges" in argv:
            return {"report": [{"lv": [{"seg_pe_ranges": "/dev/sdx:10-11"}]}]}
        rows = [
            {
                "vg_name": self.vg,
                "lv_name": name,
                "lv_size": str(item["size"] * self.extent),
                "lv_tags": ",".join(item["tags"]),
                "lv_layout": item["layout"],
                "pool_lv": item["pool"],
                "zero": item["zero"],
                "lv_uuid": f"UUID-{name}",
            }
            for name, item in self.volumes.items()
        ]
        return {"report": [{"lv": rows}]}

    def lvcreate(self, words):
        options = dict(zip(words, words[1:]))
        name, origin = options["--name"], self.volumes.get(words[-1].rpartition("/")[2])
        if name in self.volumes:
            raise Failed(f"lvcreate failed: Logical Volume {name} already exists")
        tags = [value for key, value in zip(words, words[1:]) if key == "--addtag"]
        if "--snapshot" in words and origin:
            self.volumes[name] = {**origin, "tags": [*origin["tags"], *tags]}
            self.device(name).write_bytes(self.device(words[-1].rpartition("/")[2]).read_bytes())
            return ""
        pool = options.get("--thinpool", "")
        size = self._extents(options.get("--virtualsize") or options["--size"])
        if not pool and size > self.free():
            raise Failed("lvcreate failed: insufficient free space")
        layout = "thin,sparse" if pool else "linear"
        self.volumes[name] = {"size": size, "tags": tags, "layout": layout, "pool": pool, "zero": "-1"}
        self.here[name] = "ex"
        self.device(name).write_bytes((b"\0" if pool else b"D") * (size * self.extent))
        return ""

    def _extents(self, text):
        return -(-int(text.removesuffix("b")) // self.extent)

    def lvextend(self, words):
        name, size = words[2].rpartition("/")[2], self._extents(words[1])
        old = self.volumes[name]
        if self.lock and (self.here.get(name) == "sh" or name in self.elsewhere):
            raise Failed("lvextend failed: LV locked by other host")
        new = b"\0" if old["pool"] or len(words) > 3 else b"D"
        with self.device(name).open("ab") as stream:
            stream.write(new * ((size - old["size"]) * self.extent))
        old["size"] = size
        return ""

    def lvrename(self, words):
        _vg, old, new = words
        self.volumes[new] = self.volumes.pop(old)
        self.here[new] = self.here.pop(old, "ex")
        os.rename(self.device(old), self.device(new))
        return ""

    def lvchange(self, words):
        name = words[-1].rpartition("/")[2]
        item = self.volumes[name]
        if "--activate" in words:
            return self._activate(name, words[words.index("--activate") + 1])
        for key, value in zip(words, words[1:]):
            if key == "--deltag":
                item["tags"].remove(value)
            elif key == "--addtag":
                item["tags"].append(value)
        return ""

    def _activate(self, name, how):
        other = self.elsewhere.get(name)
        if how != "n" and self.lock and other and not (how == "sy" and other == "sh"):
            raise Failed(f"lvchange failed: LV locked by other host: {self.vg}/{name}")
        if how == "n":
            self.here.pop(name, None)
        else:
            self.here[name] = "sh" if how == "sy" else "ex"
        return ""

    def sanlock(self, words):
        owners = {name: f"70254592 lvm_vg0 {name} 0000001 0002 0001 1" for name in self.elsewhere}
        return "\n".join(["00000000 lvm_vg0 u-u-i-d.hv2 0000001 0002 0001", *owners.values()])

    def lvremove(self, words):
        name = words[-1].rpartition("/")[2]
        if self.lock and name in self.elsewhere:
            raise Failed(f"lvremove failed: LV locked by other host: {self.vg}/{name}")
        del self.volumes[name]
        self.device(name).unlink()
        return ""

    def blkdiscard(self, words):
        device = self.device(words[-1].rpartition("/")[2])
        device.write_bytes((b"\0" if "--zeroout" in words else b"?") * device.stat().st_size)
        return ""
