# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup says of itself to people who have nothing but it: the commands with which the VM comes back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from . import secrecy
from .files import DEFINITION, NVRAM, NVRAM_FOLDER, TPM, TPM_FOLDER

TEXT = """\
Backup {id} of the virtual machine {vm}, made by drover.kvm. docs/backups.md of the collection says more.

  qemu-img info --backing-chain {disk}    what it is based on (keep those folders beside this one)
  sha256sum -c SHA256SUMS                 here and in each of those folders: is everything as it was written?

Without the collection: make each disk anew, and define the machine from domain.xml, in which the paths must fit.
{commands}
"""
DISK = "  qemu-img convert -p {told}-O qcow2 {image} /var/lib/libvirt/images/{vm}-{target}.qcow2"
BESIDE = {
    NVRAM: f"  cp {{at}}{NVRAM} {NVRAM_FOLDER}/{{vm}}_VARS.fd",
    TPM: f"  mkdir -p {TPM_FOLDER}/{{uuid}}; tar -xpf {{at}}{TPM} -C {TPM_FOLDER}/{{uuid}}",
    DEFINITION: f"  virsh define {{at}}{DEFINITION}",
}
# What the passphrase opens is written to memory only.
LOCKED = f"""\
It is encrypted. As root, in bash; what is beside the disks is in {{at}} then. The passphrase has no end of a line.

  umask 077; mkdir {{at}}; read -rsp 'Passphrase: ' said; printf %s "$said" >{{at}}passphrase
  qemu-img convert {{told}}-O raw driver=luks,key-secret=key,file.filename={secrecy.STATE} {{at}}state.tar
  tar -xf {{at}}state.tar -C {{at}}"""
TOLD = "--object secret,id=key,file={file} --image-opts "


def readme(manifest: Mapping[str, Any], parts: Collection[str], folder: Path) -> str:
    """How to come back without the collection. `parts` are the files beside the disks, `folder` has the images."""
    names = {**manifest["vm"], "vm": manifest["vm"]["name"]}
    at = f"/dev/shm/{names['vm']}/" if manifest["encryption"] else ""
    lines = [LOCKED.format(at=at, told=TOLD.format(file=f"{at}passphrase"))] if at else []
    for disk in manifest["disks"]:
        image, told = disk["file"], TOLD.format(file=at + secrecy.KEY) if at else ""
        if at:
            links = range(len(secrecy.chain(folder / image)))
            keys = "".join(f"{'backing.' * link}encrypt.key-secret=key," for link in links)
            image = f"driver=qcow2,{keys}file.filename={image}"
        lines.append(DISK.format(**names, told=told, image=image, target=disk["target"]))
    lines += [words.format(**names, at=at) for name, words in BESIDE.items() if name in parts]
    lines += [f"  rm -r {at}"] if at else []
    disk = manifest["disks"][0]["file"]
    return TEXT.format(id=manifest["id"], vm=names["vm"], disk=disk, commands="\n".join(lines))
