# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the options that lead to Ceph."""

from __future__ import annotations


class ModuleDocFragment:
    """The connection to a Ceph cluster."""

    DOCUMENTATION = r"""
options:
  cluster:
    description: Name of the Ceph cluster, after which its files are called.
    type: str
    default: ceph
  user:
    description: Ceph user to work as, with its type.
    type: str
    default: client.admin
  keyring:
    description: File with the user's key. Without it, the files where Ceph looks for it, such as
      C(/etc/ceph/ceph.client.admin.keyring).
    type: path
  conf:
    description: File that says where the monitors are. Without it, C(/etc/ceph/CLUSTER.conf).
    type: path
  timeout:
    description: Seconds (1 to 60) in which the cluster must let us in, and answer each question.
    type: int
    default: 5
requirements:
  - Python package C(rados) (C(python3-rados)) on the machine where the module runs
"""
