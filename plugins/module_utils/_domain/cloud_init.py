# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cloud-init is given at a VM's first boot, the drive that carries it, and what the VM's record says of it. Pure.

The seed is a small ISO with the label CIDATA (https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html).
Its drive is found by its alias. The record holds a hash of what is in it, so that a change is seen without the secrets
in it. The seed stays in its drive until somebody says so: nothing tells the node when the guest is done with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from .._disks.file import seed_path
from .._fields import Field, check_name
from .._xml import Property, add, add_device, devices, empty, find, target_of
from . import addresses, disks, metadata, nics

RECORD = "seed"
HEADERS = ("#", "Content-Type:", "MIME-Version:")


def check_user_data(value: str) -> str:
    """A text that cloud-init reads as user data; the message does not repeat it."""
    if not value.startswith(HEADERS):
        raise ValueError(
            "user data begins with #cloud-config, #! or another header of cloud-init; make a text of a dictionary "
            "with '#cloud-config\\n' ~ (data | to_json)"
        )
    return value if value.endswith("\n") else value + "\n"


def check_instance_id(value: str) -> str:
    """A name for this life of the VM."""
    if not value or len(value) > 100 or not value.isprintable() or value != value.strip():
        raise ValueError(f"{value!r} is not an instance id: 1 to 100 printable characters")
    return value


FIELDS = (
    Field("user_data", no_log=True, check=check_user_data),
    Field("hostname", check=check_name),
    Field("instance_id", check=check_instance_id),
    Field("remove", type="bool"),
)


def texts(root: Element, options: Mapping[str, Any]) -> dict[str, str]:
    """The files of the seed by name, for the VM as it is defined."""
    name, uuid = Property("name").get(root), Property("uuid").get(root)
    meta = {"instance-id": options["instance_id"] or uuid, "local-hostname": options["hostname"] or name}
    found = {"meta-data": _json(meta), "user-data": options["user_data"] or "#cloud-config\n{}\n"}
    network = addresses.network_config(nics.read_all(root))
    if network is not None:
        found["network-config"] = _json(network)
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def digest(files: dict[str, str]) -> str:
    """A hash of what the guest is told."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def drive(root: Element) -> Element | None:
    """The drive of the seed."""
    return next((disk for disk in devices(root, "disk") if disks.is_seed(disk)), None)


def target(root: Element) -> str | None:
    """The name of that drive, such as sda."""
    found = drive(root)
    return None if found is None else target_of(found)


def read(root: Element) -> dict[str, Any] | None:
    """`digest`: of what was declared last; `medium`: the path of the seed that is in the drive, None without one."""
    told = metadata.read(root).get(RECORD)
    if not told:
        return None
    found = drive(root)
    return {"digest": told, "medium": None if found is None else Property("source/@file").get(found)}


def write(root: Element, options: Mapping[str, Any]) -> None:
    """Put a seed in its drive when what the VM is told is not what the record says; or take it out (`remove`)."""
    if options["remove"]:
        eject(root)
        return
    files = texts(root, options)
    told, before = digest(files), read(root)
    if before is not None and before["digest"] == told:
        return
    metadata.edit(root, {RECORD: told})
    found = drive(root)
    if found is None:
        found = _drive(root)
    # Without the file the VM starts all the same, and so it does at the far end of a migration: the drive is empty.
    source = find(found, "source")
    source = add(found, "source") if source is None else source
    source.attrib.update({"file": seed_path(Property("name").get(root)), "startupPolicy": "optional"})


def eject(root: Element) -> Element | None:
    """Take the seed out of its drive; returns the drive, None where nothing was in it."""
    found = drive(root)
    # libvirt leaves a source without a file in the drive of a VM that runs.
    if found is None or not Property("source/@file").get(found):
        return None
    empty(found)
    return found


def _drive(root: Element) -> Element:
    found = Element("disk", {"type": "file", "device": "cdrom"})
    add(found, "driver", {"name": "qemu", "type": "raw"})
    add(found, "target", {"dev": disks.free_target(root, "sd"), "bus": "sata"})
    add(found, "readonly")
    add(found, "alias", {"name": disks.SEED})
    add_device(root, found)
    return found
