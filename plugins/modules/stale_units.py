#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module stale_units: which units have not read their files yet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stale_units
short_description: Tell which systemd units run with older files than there are
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Names the units that are active, and were started or reloaded before one of their files was written. All units are
    looked at in one call. It changes nothing.
  - It is for those who write roles; who applies the roles of this collection never calls it.
  - A handler, and C(when) with C(is changed), know only what this very run has written. Where the run that wrote a file
    was killed before it restarted the service, the next one finds the file as it should be, and the service goes on
    with the old one. This module goes by the times of both, so the next run mends it.
  - A unit that is not active reads its files when it starts, so it is not named, nor is one that systemd does not know.
    A file that does not exist counts for nothing.
options:
  units:
    description:
      - The units, by their whole names such as C(libvirtd.service), each with the files that it reads when it starts or
        is reloaded, as absolute paths.
      - A unit's own file needs no mention; systemd itself knows when it is to be read anew (C(NeedDaemonReload)).
    type: dict
    required: true
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.info]
requirements:
  - systemd 247 or later
seealso:
  - name: systemctl(1)
    description: Properties of units, and option C(--timestamp).
    link: https://www.freedesktop.org/software/systemd/man/latest/systemctl.html
"""

EXAMPLES = r"""
- name: See whether multipathd has read its settings
  drover.kvm.stale_units:
    units:
      multipathd.service: [/etc/multipath.conf, /etc/multipath/conf.d/drover.conf]
  register: multipath

- name: Reload it where it has not, also after a run that was killed
  ansible.builtin.systemd_service:
    name: "{{ item }}"
    state: reloaded
  loop: "{{ multipath.units }}"

- name: Refuse to go on while a daemon of libvirt has old settings
  drover.kvm.stale_units:
    units:
      libvirtd.service: [/etc/libvirt/libvirtd.conf, /etc/libvirt/qemu.conf]
      virtlogd.service: [/etc/libvirt/virtlogd.conf]
  register: libvirt
  failed_when: libvirt.units | length > 0
"""

RETURN = r"""
units:
  description: The names of those that are to be restarted or reloaded, in alphabetical order.
  returned: success
  type: list
  elements: str
  sample: [multipathd.service]
files:
  description: For each of them the files that are newer; empty where it is the unit's own.
  returned: success
  type: dict
  sample: {multipathd.service: [/etc/multipath/conf.d/drover.conf]}
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _units
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._resource import run_info

FIELDS = (Field("units", type="dict", required=True, check=_units.check_units),)


def connect(_params: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Nothing is opened."""
    return nullcontext()


def read_stale(params: dict[str, Any], _client: None) -> dict[str, Any]:
    """All of them."""
    files = _units.stale(params["units"])
    return {"units": list(files), "files": files}


def main() -> None:
    """Run the module."""
    run_info(read_stale, FIELDS, connect)


if __name__ == "__main__":
    main()
