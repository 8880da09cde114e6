# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds the lock of a logical volume, as sanlock tells it."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._lvm import lease_owners

DUMP = """  offset   lockspace   resource  timestamp  own  gen lver
00000000                            lvm_vmsan          3f4e5a6b-0000-4000-8000-000000000001.hv1 0000001234 0001 0001
00000512                            lvm_vmsan          3f4e5a6b-0000-4000-8000-000000000002.hv2 0000001240 0002 0003
00001024                            lvm_vmsan                                           hv3.example 0000000900 0003 0001
69206016                            lvm_vmsan                                          VGLK 0000000000 0001 0001 40
70254592                            lvm_vmsan            7xoDtu-yvNM-iwQx-C94t-BbYs-UzBl-o8hAIa 0000001200 0002 0003 3
71303168                            lvm_vmsan            exxNPX-wZdO-uCNy-yiGa-aJGT-JKVl-arfcYT 0000000000 0001 0001 9
                                                                                                          0001 0001 SH
                                                                                                          0002 0003 SH
72351744                            lvm_vmsan            iLpDel-hR0T-hJ3u-rnVo-PcDh-mcjt-sF9egM 0000000890 0003 0001 1
"""
HOSTS = """s lvm_other:9:/dev/mapper/other-lvmlock:0
h 2 gen 1 timestamp 1 DEAD
s lvm_vmsan:1:/dev/mapper/vmsan-lvmlock:0
h 1 gen 1 timestamp 1234 LIVE
h 2 gen 3 timestamp 1240 LIVE
h 3 gen 1 timestamp 900 DEAD
"""


@pytest.mark.parametrize(
    "offset, dead, holders",
    [
        ("70254592", False, ["hv2"]),
        ("71303168", False, ["hv2"]),
        ("72351744", False, []),
        ("72351744", True, ["hv3.example"]),
        ("69206016", True, []),
        ("99999999", True, []),
        ("", True, []),
    ],
    ids=["exclusive", "shared, with this node", "dead", "dead, and asked for", "free", "unknown", "without a lock"],
)
def test_the_other_nodes_that_hold_a_volume(offset, dead, holders):
    assert lease_owners(DUMP, HOSTS, "lvm_vmsan", offset, dead) == holders


def test_a_host_without_a_name_is_known_by_its_number():
    assert lease_owners(DUMP.replace("own", ""), "", "lvm_vmsan", "70254592", dead=False) == ["hv2"]
    lines = [line for line in DUMP.splitlines() if not line.startswith("0")]
    assert lease_owners("\n".join(lines), "", "lvm_vmsan", "70254592", dead=False) == ["host 2"]
