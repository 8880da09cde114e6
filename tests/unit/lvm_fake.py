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

    It lies on /dev/mapper/vms1. With `lock` it is a shared one. `elsewhere` are the volumes that another node has, and
    how (ex or sh); `here` those that are active on this one.
    """

    vg = "vg0"
    uuid = "VG-UUID"
    tags = ""

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

    def import_clone(self):
        """As vgimportclone of a copied LUN: what is in it and what its volumes are called and marked with stays."""
        self.uuid = "UUID-OF-THE-COPY"

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
            row.update(vg_uuid=self.uuid, vg_lock_type=self.lock, vg_size=str(self.extents * self.extent))
            row.update(vg_tags=self.tags, lv_count=str(len(self.volumes)))
            return {"report": [{"vg": [row]}]}
        if argv[0] == "pvs":
            sizes = {"pe_start": "0", **dict.fromkeys(("dev_size", "pv_size"), str(self.extents * self.extent))}
            return {"report": [{"pv": [{"pv_name": "/dev/mapper/vms1", "vg_name": self.vg, **sizes}]}]}
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
                "origin": item.get("origin", ""),
                "vg_uuid": self.uuid,
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
            tags = sorted({*origin["tags"], *tags})
            self.volumes[name] = {**origin, "tags": tags, "origin": words[-1].rpartition("/")[2]}
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
        return "\n".join(["00000000 lvm_vg0 hv2 0000001 0002 0001", *owners.values()])

    def lvremove(self, words):
        name = words[-1].rpartition("/")[2]
        if self.lock and name in self.elsewhere:
            raise Failed(f"lvremove failed: LV locked by other host: {self.vg}/{name}")
        # "Removing an origin LV will also remove all dependent snapshots", lvremove(8); thin ones depend on none.
        snapshots = [one for one, item in self.volumes.items() if item.get("origin") == name and not item["pool"]]
        for gone in [*snapshots, name]:
            del self.volumes[gone]
            self.device(gone).unlink()
        return ""

    def blkdiscard(self, words):
        device = self.device(words[-1].rpartition("/")[2])
        device.write_bytes((b"\0" if "--zeroout" in words else b"?") * device.stat().st_size)
        return ""


class Groups:
    """LVM's commands on devices and groups: `sizes` are the devices by path, `carried` what they hold.

    `others` are the time stamp and the state of the other nodes in the locks of each group, by name. `written` is what
    LVM has left at the beginning of devices. vgremove of a shared group never ends.
    """

    extent = 4 * MIB
    start = MIB

    def __init__(self, sizes: dict[str, int]):
        self.sizes = sizes
        self.carried: dict[str, str] = {}
        self.others: dict[str, tuple[int, str]] = {}
        self.written: set[str] = set()
        self.groups: dict[str, dict[str, Any]] = {}
        self.commands: list[str] = []

    def run(self, argv, stdin=None, timeout=60):
        program, *words = argv
        if program == "lvmlockctl":
            return "".join(f"VG {name} lock_type=sanlock x\n" for name, one in self.groups.items() if one["started"])
        self.commands.append(" ".join(argv))
        return getattr(self, program)(words)

    def report(self, argv, timeout=60):
        if argv[0] == "wipefs":
            return {"signatures": [{"type": self.carried[argv[-1]]}]} if argv[-1] in self.carried else None
        if argv[0] == "vgs":
            return {"report": [{"vg": [self.row(name, one) for name, one in self.groups.items()]}]}
        rows = [(name, path, used) for name, one in self.groups.items() for path, used in one["devices"].items()]
        columns = ("pv_name", "vg_name", "dev_size", "pv_size", "pe_start")
        found = [(path, name, str(self.sizes[path]), str(used), str(self.start)) for name, path, used in rows]
        return {"report": [{"pv": [dict(zip(columns, row)) for row in found]}]}

    def row(self, name, one):
        size = sum(one["devices"].values())
        return {
            "vg_name": name,
            "vg_extent_size": str(self.extent),
            "vg_free": str(size),
            "vg_uuid": f"UUID-{name}",
            "vg_lock_type": "sanlock" if one["shared"] else "",
            "vg_size": str(size),
            "vg_tags": ",".join(one["tags"]),
            "lv_count": str(one["volumes"]),
        }

    def usable(self, path):
        return (self.sizes[path] - self.start) // self.extent * self.extent

    def vgcreate(self, words):
        shared = "--shared" in words
        tags = [value for key, value in zip(words, words[1:]) if key == "--addtag"]
        name, *devices = [word for word in words if not word.startswith("--") and word not in tags]
        used = {path: self.usable(path) for path in devices}
        self.groups[name] = {"shared": shared, "started": shared, "tags": tags, "devices": used, "volumes": 0}
        self.carried.update(dict.fromkeys(devices, "LVM2_member"))
        return ""

    def vgextend(self, words):
        self.groups[words[0]]["devices"][words[1]] = self.usable(words[1])
        self.carried[words[1]] = "LVM2_member"
        return ""

    def pvresize(self, words):
        group = next(one for one in self.groups.values() if words[0] in one["devices"])
        group["devices"][words[0]] = self.usable(words[0])
        return ""

    def vgchange(self, words):
        group = self.groups[words[-1]]
        if "--lock-type" in words:
            assert not group["started"] and "--yes" in words
            group["shared"] = False
        else:
            group["started"] = "--lock-start" in words
        return ""

    def vgremove(self, words):
        group = self.groups.pop(words[-1])
        assert not group["shared"], "it hangs"
        self.written.update(group["devices"])
        return self._without_locks(words)

    def pvremove(self, words):
        del self.carried[words[-1]]
        return self._without_locks(words)

    def _without_locks(self, words):
        if "global/use_lvmlockd=0" not in words:
            raise Failed("Global lock failed: check that global lockspace is started")
        return ""

    def blkdiscard(self, words):
        assert words[:3] == ["--zeroout", "--length", str(MIB)]
        self.written.remove(words[-1])
        return ""

    def sanlock(self, words):
        names = ["hv1", *self.others]
        found = {"hv1": (1, "LIVE"), **self.others}
        if words[:2] == ["direct", "dump"]:
            rows = [f"{512 * at:08} lvm_vmsan {name} {found[name][0]} {at + 1} 0001" for at, name in enumerate(names)]
            return "\n".join([*rows, "69206016 lvm_vmsan VGLK 0000000000 0001 0001 40"])
        rows = [f"h {at + 1} gen 1 timestamp {found[name][0]} {found[name][1]}" for at, name in enumerate(names)]
        return "\n".join(["s lvm_vmsan:1:/dev/mapper/vmsan-lvmlock:0", *rows])
