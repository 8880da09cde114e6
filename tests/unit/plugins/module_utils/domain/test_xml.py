# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain XML that we did not write: read, edited, and given back without loss."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._domain import metadata
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import disk_facts, domain_facts
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Domain
from ansible_collections.drover.kvm.plugins.module_utils._xml import Flag, Property, find, parse, text_of

FOREIGN = Path(__file__).with_name("foreign.xml").read_text(encoding="utf-8").rstrip("\n")
BOMB = '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><domain><name>&b;</name></domain>'
XXE = '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/shadow">]><domain><name>&x;</name></domain>'


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[:2] not in ("--", "++", "@@")]


def test_nothing_is_lost_when_nothing_is_changed():
    assert text_of(parse(FOREIGN)) == FOREIGN


def test_a_comment_of_a_file_of_libvirt_is_no_part_of_the_tree():
    assert text_of(parse("<!-- do not edit -->\n<a><!-- kept --></a>\n<!-- end -->")) == "<a><!-- kept --></a>"


@pytest.mark.parametrize("text", [BOMB, XXE, "<domain>", "", "no", "<a/><b/>"])
def test_declarations_and_broken_xml_are_refused(text):
    with pytest.raises(Invalid):
        parse(text)


def test_a_written_property_changes_its_own_line_only():
    root = parse(FOREIGN)
    Property("vcpu", int, str).put(root, 8)
    Property("os/type/@machine").put(root, "pc-q35-10.0")
    assert [line.strip("+- ") for line in changed_lines(FOREIGN, text_of(root))] == [
        "<vcpu placement='static' current='2'>4</vcpu>",
        "<vcpu placement='static' current='2'>8</vcpu>",
        "<type arch='x86_64' machine='pc-q35-7.2'>hvm</type>",
        "<type arch='x86_64' machine='pc-q35-10.0'>hvm</type>",
    ]


def test_a_removed_property_takes_its_empty_parents_along():
    root = parse("<d><keep/><a><b c='1'/></a></d>")
    Property("a/b/@c").put(root, None)
    assert text_of(root) == "<d><keep/></d>"
    Property("a/b/@c").put(root, None)
    Flag("keep").put(root, False)
    assert text_of(root) == "<d/>"


def test_values_cannot_become_markup():
    root = parse("<domain><name/></domain>")
    Property("name").put(root, "y</name><description>injected</description><name>")
    again = parse(text_of(root))
    assert find(again, "description") is None
    assert Property("name").get(again) == "y</name><description>injected</description><name>"


def test_the_record_keeps_what_it_does_not_name():
    root = parse(FOREIGN)
    metadata.edit(root, {"tags": ["db"], "owner": "ops & co", "home": None})
    record = metadata.read(parse(text_of(root)))
    assert record["tags"] == ["db"] and record["owner"] == "ops & co" and record["home"] is None
    assert record["rollback_safe"] == "yes"
    assert "libosinfo:os id" in text_of(root) and (metadata.marker(root) or {})["to"] == "hv2"


def test_a_record_is_made_where_there_is_none():
    root = parse("<domain><name>a</name></domain>")
    assert metadata.read(root)["managed"] is False and metadata.record_xml(root) is None
    metadata.edit(root, {"tags": ["b", "a"]})
    assert metadata.record_xml(root) == "<vm version='1'><tags><tag>a</tag><tag>b</tag></tags></vm>"
    assert metadata.read(parse(text_of(root)))["tags"] == ["a", "b"]


def test_markers_survive_libvirts_own_quotes():
    values = {"id": "4c1e", "from": "hv1", "to": "hv2", "was": "running", "autostart": True, "started": 1767225600}
    assert metadata.marker_from_text(metadata.marker_xml(values)) == values
    assert metadata.marker(parse(FOREIGN)) == values
    assert metadata.marker_from_text(None) is None


def test_facts_of_a_running_domain():
    domain = Domain(
        name="legacy",
        uuid="6f0f",
        id=7,
        has_managed_save=False,
        state="running",
        reason="booted",
        persistent=True,
        autostart=False,
        job=None,
        xml=FOREIGN,
        live_xml=FOREIGN,
    )
    facts = domain_facts(domain, shared_mounts=["/srv/shared"])
    assert facts["vcpus"] == {"current": 2, "maximum": 4}
    assert facts["memory"] == {"current": 1 << 30, "maximum": 2 << 30}
    assert [(disk["type"], disk["identity"], disk["shared_storage"]) for disk in facts["disks"]] == [
        ("iscsi", "iscsi:iqn.2026-11.lab:h1/1@10.231.5.10:3260", True),
        ("file", "file:/srv/shared/data, & more.qcow2", True),
        ("rbd", "rbd:?/vms/legacy", True),
        ("volume", "volume:vg0/legacy", False),
        ("file", None, False),
    ]
    assert [(nic["mac"][-2:], nic["bridge"], nic["vlan"], nic["trunks"]) for nic in facts["nics"]] == [
        ("01", "br-int", 100, []),
        ("02", "br-int", None, [100, 200]),
    ]
    assert facts["metadata"] == {
        "managed": True,
        "tags": ["rack 'b'", "web"],
        "home": "hv1",
        "owner": None,
        "description": None,
        "rollback_safe": "yes",
    }
    assert facts["marker"]["from"] == "hv1" and facts["cpu"].startswith("<cpu mode='custom'")
    assert facts["hostdevs"][0]["source"]["bus"] == "0x3b"
    assert facts["hostdevs"][0]["name"] == "PCI device 0000:3b:00.1"
    assert "s3" not in str(facts)


@pytest.mark.parametrize(
    "inside,pages",
    [
        ("", None),
        ("<memoryBacking><locked/></memoryBacking>", None),
        ("<memoryBacking><hugepages/></memoryBacking>", True),
        ("<memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking>", 1 << 30),
        ("<memoryBacking><hugepages><page size='2048'/></hugepages></memoryBacking>", 2 << 20),
    ],
)
def test_facts_tell_huge_pages_and_the_lease(inside, pages):
    lease = "<lease><lockspace>l</lockspace><key>u-1</key><target path='/srv'/></lease>"
    xml = f"<domain type='kvm'><name>a</name><uuid>u-1</uuid>{inside}<devices>{lease}</devices></domain>"
    facts = domain_facts(Domain("a", "u-1", None, "stopped", "shutdown", True, False, False, xml))
    assert facts["hugepages"] == pages and facts["lease"] == "/srv/l/u-1"


def test_facts_of_a_domain_that_is_shut_off_come_from_its_definition():
    domain = Domain(
        name="legacy",
        uuid="6f0f",
        id=None,
        has_managed_save=False,
        state="stopped",
        reason="shutdown",
        persistent=True,
        autostart=True,
        job=None,
        xml="<domain type='qemu'><name>legacy</name><memory unit='GiB'>2</memory></domain>",
        live_xml=None,
    )
    facts = domain_facts(domain)
    assert facts["cpu"] is None and facts["virt_type"] == "qemu" and facts["memory"]["current"] == 2 << 30
    assert facts["disks"] == [] and facts["marker"] is None


@pytest.mark.parametrize(
    "source, places, shared",
    [
        ("/dev/san/web1", ["/dev/san/web1"], True),
        ("/dev/disk/by-id/nvme-1", ["/dev/san/web1"], False),
        ("/dev/vmsan/web1", ["/dev/vmsan"], True),
        ("/dev/vmdata/web1", ["/dev/vmsan"], False),
    ],
)
def test_a_device_is_shared_when_the_node_says_so(source, places, shared):
    disk = parse(f"<disk type='block'><source dev='{source}'/><target dev='vda'/></disk>")
    assert disk_facts(disk, places)["shared_storage"] is shared
