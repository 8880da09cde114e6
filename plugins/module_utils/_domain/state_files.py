# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM keeps in files of its node beside its disks: the variables of UEFI (nvram), the keys of its TPM. Pure.

libvirt puts them into folders of its own, the variables by the VM's name, the keys by its UUID
(https://libvirt.org/formatdomain.html, `nvram` and `tpm`). A definition may name other places.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

from .._xml import Property, devices, find

# Of swtpm, beside the keys, which makes it anew.
LOCK = ".lock"
NVRAM, TPM = PurePosixPath("/var/lib/libvirt/qemu/nvram"), PurePosixPath("/var/lib/libvirt/swtpm")


def kinds(root: Element) -> list[str]:
    """Which of the two it has: `nvram`, `tpm`. libvirt 9.0 names the file of the variables of a running VM only."""
    nvram = find(root, "os/nvram") is not None or Property("os/@firmware").get(root) == "efi"
    return [name for name, there in (("nvram", nvram), ("tpm", bool(_emulated(root)))) if there]


def variables(root: Element) -> str | None:
    """The file of UEFI's variables, where it is libvirt's own."""
    if "nvram" not in kinds(root):
        return None
    path = Property("os/nvram").get(root) or str(NVRAM / f"{Property('name').get(root)}_VARS.fd")
    return path if PurePosixPath(path).parent == NVRAM else None


def keys(root: Element) -> str | None:
    """The folder with the keys of its TPM, where it is libvirt's own and no secret of the node is needed to read it."""
    backend = next(iter(_emulated(root)), None)
    if backend is None or find(backend, "source") is not None or find(backend, "encryption") is not None:
        return None
    version = "tpm1.2" if backend.get("version") == "1.2" else "tpm2"
    return str(TPM / str(Property("uuid").get(root)) / version)


def elsewhere(root: Element) -> list[str]:
    """Those of its kinds that are not where libvirt puts them by itself: only the VM that runs takes them along."""
    places = {"nvram": variables(root), "tpm": keys(root)}
    return [kind for kind in kinds(root) if places[kind] is None]


def _emulated(root: Element) -> list[Element]:
    found = [find(device, "backend") for device in devices(root, "tpm")]
    return [backend for backend in found if backend is not None and backend.get("type") == "emulator"]
