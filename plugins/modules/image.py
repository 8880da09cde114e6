#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module image: a template from which disks of VMs are made."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Manage template images, from which disks of VMs are made
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Fetches the image of a disk to a machine, from a URL or from a path there, proves it by its checksum, converts it
    where that is asked for, and keeps it as a template. M(drover.kvm.vm) makes disks from it
    (O(drover.kvm.vm#module:disks[].source)), M(drover.kvm.iscsi_volume) volumes of a SAN.
  - The file gets its name only when all of it is there and proved. It can only be read, and carries a mark, the
    extended attribute C(user.drover.image), with its checksums, length and time. A second run looks at these and
    fetches nothing. A module that was killed leaves no half image; run it again.
  - A template that a VM of this machine needs is neither replaced nor removed, whether the VM runs or not, nor is one
    on which a file is based that M(drover.kvm.vm) made. The error names them.
  - An image that is based on another file, or has its data in one, is refused.
options:
  path:
    description:
      - Where the template is, as an absolute path in a folder that exists. A file that is there already and was not
        made by this module is refused.
    type: path
    required: true
  source:
    description:
      - A URL (C(https), C(http) or C(file)) or an absolute path on the same machine. Proxies are taken from the
        environment (C(https_proxy)). Required unless O(state=absent).
      - It is not compared later. What counts is O(checksum).
    type: str
    aliases: [url, src]
  checksum:
    description:
      - What the source must have, V(sha256:HEX), V(sha384:HEX) or V(sha512:HEX). Instead of V(HEX) a URL or path of a
        list such as C(SHA512SUMS), in which the line with the source's file name counts, as
        sha512sum writes it or as BSD and Fedora do (C(SHA256), the name in parentheses, an equals sign). A list is read
        on each run.
      - Another checksum than the template has means another image. It takes the place of the old one, unless that is
        needed. Required unless O(state=absent).
    type: str
  format:
    description: Format of the template. It is never guessed. Required unless O(state=absent).
    type: str
    choices: [raw, qcow2]
  source_format:
    description:
      - Format of the source. Where it is another one than O(format), the image is converted.
      - The default is O(format).
    type: str
    choices: [raw, qcow2, vmdk, vdi, vhdx, vpc]
  verify:
    description:
      - Whether to read the whole template and compare its content with what was made. Without it, it is read only when
        its length or time has changed. One whose content has changed is made anew, or refused while it is needed.
    type: bool
    default: false
  timeout:
    description: How long to wait for the server's connection and for each of its answers, in seconds.
    type: int
    default: 60
  state:
    description: V(absent) deletes the template, and what a killed run has left beside it.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
requirements:
  - C(qemu-img)
  - a file system with extended attributes, such as ext4 or XFS
notes:
  - A compressed file (C(.xz), C(.gz)) is not unpacked.
  - In check mode nothing is fetched but a list of checksums; RV(image.size) of a new one is null then.
seealso:
  - module: drover.kvm.vm
  - module: drover.kvm.iscsi_volume
"""

EXAMPLES = r"""
- name: A template of Debian on each node, from the folder of a date, which stays as it is (latest does not)
  drover.kvm.image:
    path: /var/lib/libvirt/templates/debian-13.qcow2
    source: https://cloud.debian.org/images/cloud/trixie/20251117-2299/debian-13-genericcloud-amd64-20251117-2299.qcow2
    checksum: sha512:https://cloud.debian.org/images/cloud/trixie/20251117-2299/SHA512SUMS
    format: qcow2

- name: One with its checksum
  drover.kvm.image:
    path: /var/lib/libvirt/templates/golden-7.qcow2
    source: https://images.example.org/golden-7.qcow2
    checksum: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    format: qcow2

- name: A raw image on the SAN, from which module iscsi_volume makes volumes
  drover.kvm.image:
    path: /srv/drover/images/debian-13.raw
    source: https://images.example.org/debian-13.qcow2
    checksum: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    source_format: qcow2
    format: raw
  delegate_to: san1

- name: A template of the disk in an OVA, which was unpacked with tar
  drover.kvm.image:
    path: /var/lib/libvirt/templates/appliance.qcow2
    source: /root/appliance-disk1.vmdk
    checksum: "sha256:{{ appliance_sha256 }}"
    source_format: vmdk
    format: qcow2

- name: Make a template of a file that was copied to the node, and read it all once more
  drover.kvm.image:
    path: /var/lib/libvirt/templates/appliance.qcow2
    source: /root/appliance.qcow2
    checksum: "sha256:{{ appliance_sha256 }}"
    format: qcow2
    verify: true

- name: Remove one that nothing needs any more
  drover.kvm.image:
    path: /var/lib/libvirt/templates/debian-12.qcow2
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["make /var/lib/libvirt/templates/golden-7.qcow2 (qcow2) from https://images.example.org/golden-7.qcow2"]
image:
  description: The template; null when it is absent.
  returned: always
  type: dict
  contains:
    path: {description: Where it is., type: str, returned: always}
    format: {description: Its format., type: str, returned: always}
    size: {description: "Size of the disk that a VM sees, in bytes.", type: int, returned: always}
    checksum: {description: The checksum of its source., type: str, returned: always}
    intact:
      description: Whether its length and time, or with O(verify) its content, are as they were made.
      type: bool
      returned: always
error:
  description: The kind of failure, see M(drover.kvm.vm).
  returned: failure
  type: str
"""

from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _download
from ansible_collections.drover.kvm.plugins.module_utils._checksum import hash_of
from ansible_collections.drover.kvm.plugins.module_utils._disks import file, imported, making, template
from ansible_collections.drover.kvm.plugins.module_utils._domain.templates import check_unused
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("path", type="path", required=True, check=file.check_path),
    Field("source", aliases=("url", "src"), check=_download.check_source),
    Field("checksum", check=_download.check_checksum),
    Field("format", choices=file.FORMATS),
    Field("source_format", choices=imported.FORMATS),
    Field("verify", type="bool", default=False),
    Field("timeout", type="int", default=60, check=between(1, 86400)),
    Field("state", choices=("present", "absent"), default="present"),
)


class Image(Resource):
    """One template."""

    key = "path"

    def __init__(self, params: dict[str, Any], client: None) -> None:
        super().__init__(params, client)
        self.checksum = ""
        self.same = False

    def read(self) -> State:
        """What its mark says, and whether the file is still that one. Raises Refused for a file that is not ours."""
        path = self.name
        if file.inspect({"path": path, "format": "raw"}) is None:
            left = making.left(path) if self.params["state"] == "absent" else []
            return {"path": path, "left": left} if left else None
        found = template.read(path)
        if found is None:
            raise Refused(
                f"{path} was not made by this module and stays as it is; choose another path, or move it away"
            )
        intact = template.is_as_made(path, found)
        if self.params["verify"] or not intact:
            self.same = hash_of(path) == found.digest
            intact = intact and self.same
        return {"path": path, "format": found.format, "size": found.size, "checksum": found.checksum, "intact": intact}

    def wanted(self, before: State) -> State:
        """The image with the checksum that was given."""
        if self.params["state"] == "absent":
            if before is not None and "left" not in before:
                check_unused(self.name)
            return None
        for name in ("source", "checksum", "format"):
            if not self.params[name]:
                raise Invalid(f"{name} is missing; an image that shall be there needs it", option=name)
        if not Path(self.name).parent.is_dir():
            raise Invalid(f"the folder {Path(self.name).parent} does not exist; make it, or mount what belongs there")
        known = self.checksum or _download.expected(
            self.params["checksum"], self.params["source"], self.params["timeout"]
        )
        self.checksum = known
        new = {"path": self.name, "format": self.params["format"], "size": None, "checksum": known, "intact": True}
        if before is None:
            return new
        if not self.differs(before, new) and (before["intact"] or self.same):
            return {**before, "intact": True}
        try:
            check_unused(self.name)
        except Refused as error:
            changed = "" if before["intact"] else f"{self.name} has changed since it was made, and "
            raise Refused(changed + error.message, **error.details) from None
        return new

    @staticmethod
    def differs(before: dict[str, Any], wanted: dict[str, Any]) -> bool:
        """Whether it is another image."""
        return any(before[name] != wanted[name] for name in ("format", "checksum"))

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Make, replace, or remove it."""
        path, params = self.name, self.params
        if wanted is None:
            return self.removal(before)
        if before is not None and before["intact"] and not self.differs(before, wanted):
            return []
        if before is not None and self.same and not self.differs(before, wanted):
            return [Step(f"note the new time of {path}, whose content is the same", partial(making.renew, path))]
        verb = "make" if before is None else "replace"
        source_format = params["source_format"] or params["format"]
        order = making.Order(path, params["source"], self.checksum, source_format, params["format"], params["timeout"])
        words = f"{verb} {path} ({params['format']}) from {params['source']}"
        return [Step(words, partial(making.make, order, partial(check_unused, path)))]

    def removal(self, before: State) -> list[Step]:
        """Delete what is there."""
        if before is None:
            return []
        left = making.left(self.name)
        steps = [Step(f"delete {part}, which a run left", partial(Path(part).unlink, missing_ok=True)) for part in left]
        if "left" not in before:
            call = partial(making.remove, self.name, partial(check_unused, self.name))
            steps.append(Step(f"delete {self.name}", call))
        return steps

    def result(self, state: State) -> dict[str, Any]:
        """The template."""
        return {"image": None if state is None or "left" in state else state}


def main() -> None:
    """Run the module."""
    run_module(Image, FIELDS)


if __name__ == "__main__":
    main()
