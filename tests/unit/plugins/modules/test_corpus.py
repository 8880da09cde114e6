# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The corpus of hostile values against every option of the network's modules, with a real switch beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _links, _ovs
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import normalise
from ansible_collections.drover.kvm.plugins.modules import ovs_bridge, ovs_switch, vm
from ansible_collections.drover.kvm.tests.unit import corpus, ovs_server

pytestmark = [
    pytest.mark.skipif(bool(ovs_server.missing()), reason=f"not installed: {', '.join(ovs_server.missing())}"),
    pytest.mark.skipif(not _ovs.HAS_BINDINGS, reason="not installed: Python package ovs"),
]
HOSTILE = [*corpus.NAMES, *corpus.TOO_LONG]
BRIDGE_FIELDS = tuple(field for field in ovs_bridge.FIELDS if field.name != "socket")
NIC_FIELDS = tuple(field for field in vm.FIELDS if field.name in ("name", "nics"))
WORDS = corpus.words(BRIDGE_FIELDS, free=set())
NIC_WORDS = corpus.words(NIC_FIELDS, free={"average", "peak"})


@pytest.fixture(scope="module")
def server():
    with ovs_server.private_switch() as running:
        running.vsctl("add-br", "br0", "--", "add-port", "br0", "eth0", "tag=5", "--", "add-br", "br-int")
        yield running


@pytest.fixture
def ovs(server, tmp_path, monkeypatch):
    """The switch with two bridges; whatever the test does, it is as it was, and the canary was not made."""
    for number in range(6):
        (tmp_path / f"eth{number}").touch()
    monkeypatch.setattr(_links, "DEVICES", tmp_path)
    before = tables(server)
    yield server
    assert tables(server) == before
    assert not Path(corpus.CANARY).exists()


def tables(server):
    """All that the collection looks at, but for what the switch itself counts."""
    with _ovs.connect(server.socket) as client:
        found = client.snapshot().tables
    return {table: found[table] for table in ("Bridge", "Port", "Interface", "Mirror", "QoS", "Queue", "Controller")}


@pytest.fixture
def module(ovs, capsys):
    def run(which, **args):
        place = {} if which is vm else {"socket": ovs.socket}
        with patch_module_args({**place, **args}), pytest.raises(SystemExit):
            which.main()
        return json.loads(capsys.readouterr().out)

    return run


def refused(result, value):
    """The value itself was refused, by us or by Ansible's own types or its log, and nothing was done."""
    assert result.get("failed") and not result.get("changed"), (value, result)
    own = result.get("error") == "Invalid"
    theirs = re.search(r"unable to convert|cannot be converted|of type|embedded null", result["msg"])
    assert own or theirs, (value, result)
    assert "Traceback" not in result["msg"], value


@pytest.mark.parametrize("path", WORDS, ids=".".join)
def test_ovs_bridge_refuses_words_that_are_none(module, path):
    for value in HOSTILE:
        result = module(ovs_bridge, **{"name": "br0", **corpus.nested(BRIDGE_FIELDS, path, value)})
        refused(result, value)


@pytest.mark.parametrize("path, wrong", corpus.vlans(BRIDGE_FIELDS), ids=str)
def test_ovs_bridge_refuses_vlans_that_are_none(module, path, wrong):
    for value in wrong:
        result = module(ovs_bridge, **{"name": "br0", **corpus.nested(BRIDGE_FIELDS, path, value)})
        refused(result, value)


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"ports": [{"name": "eth1", "tag": 5, "trunks": [5, 6]}]}, "trunks"),
        ({"bonds": [{"name": "bond0", "members": ["eth1"]}]}, "at least two"),
        ({"bonds": [{"name": "bond0", "members": []}]}, "at least two"),
        ({"bonds": [{"name": "bond0", "members": ["eth1", "eth1"]}]}, "twice"),
        ({"bonds": [{"name": "bond0", "members": ["eth0", "eth1"]}], "name": "br-int"}, "eth0"),
        ({"ports": [{"name": "eth0"}], "name": "br-int"}, "belongs to port eth0 of bridge br0"),
    ],
)
def test_ovs_bridge_refuses_what_does_not_go_together(module, bad, words):
    result = module(ovs_bridge, **{"name": "br0", **bad})
    assert result.get("failed") and not result.get("changed") and words in result["msg"], result


@pytest.mark.parametrize("path", NIC_WORDS, ids=".".join)
def test_vm_refuses_words_that_are_none(path):
    for value in corpus.NAMES if path[-1] in ("name", "network") else HOSTILE:
        args = {"name": "web1", **corpus.nested(NIC_FIELDS, path, value)}
        with pytest.raises(Invalid):
            normalise(NIC_FIELDS, args)


@pytest.mark.parametrize("path, wrong", corpus.vlans(NIC_FIELDS), ids=str)
def test_vm_refuses_vlans_that_are_none(module, path, wrong):
    for value in wrong:
        refused(module(vm, **{"name": "web1", **corpus.nested(NIC_FIELDS, path, value)}), value)


@pytest.mark.parametrize("option", ["other_config", "external_ids"])
def test_ovs_switch_keeps_texts_as_they_are(module, server, option):
    for number, value in enumerate(corpus.NAMES):
        if "\x00" in value:
            continue
        result = module(ovs_switch, **{option: {f"drover-{number}": value}})
        assert not result.get("failed"), (value, result)
        assert result["resource"][option][f"drover-{number}"] == value
    keys = {f"drover-{number}": None for number in range(len(corpus.NAMES))}
    assert module(ovs_switch, **{option: keys})["changed"]
