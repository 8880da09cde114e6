# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the options that lead to libvirt."""

from __future__ import annotations


class ModuleDocFragment:
    """The connection to libvirt."""

    DOCUMENTATION = r"""
options:
  uri:
    description:
      - URI of the libvirt daemon, as seen from the machine where the module runs. See
        U(https://libvirt.org/uri.html).
      - A daemon that does not answer within 8 seconds fails the task.
    type: str
    default: qemu:///system
requirements:
  - Python package C(libvirt) (C(python3-libvirt)) on the machine where the module runs
"""
