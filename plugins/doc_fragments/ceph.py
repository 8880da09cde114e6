# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the options that lead to a Ceph cluster."""

from __future__ import annotations


class ModuleDocFragment:
    """The connection to Ceph's monitors."""

    DOCUMENTATION = r"""
options:
  cluster:
    description: Name of the cluster, by which its files in C(/etc/ceph) are found.
    type: str
    default: ceph
  user:
    description: The user of Ceph, whole, as whom the monitors are asked.
    type: str
    default: client.admin
  keyring:
    description:
      - File with the user's key on the machine where the module runs.
      - By default a file in C(/etc/ceph) that is named after the cluster and the user.
    type: str
  conf:
    description:
      - File that says where the monitors are.
      - The default is C(/etc/ceph/CLUSTER.conf).
    type: str
  timeout:
    description: How long the monitors may take to answer, in seconds, from 1 to 60.
    type: int
    default: 5
requirements:
  - Python package C(rados) (C(python3-rados)) on the machine where the module runs
"""
