# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module secret against a private libvirtd."""

from __future__ import annotations

import base64
import json

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect, libvirt
from ansible_collections.drover.kvm.plugins.modules import secret
from ansible_collections.drover.kvm.tests.unit import libvirt_server

pytestmark = [
    pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt"),
    pytest.mark.skipif(bool(libvirt_server.missing()), reason=str(libvirt_server.missing())),
]
CANARY = "corr3ct-h0rse"


@pytest.fixture(scope="module")
def daemon():
    with libvirt_server.private_libvirtd() as running:
        yield running


@pytest.fixture
def store(daemon):
    with connect(daemon.uri()) as node:
        for one in node.secrets():
            node.undefine_secret(one.uuid)
        yield node


@pytest.fixture
def run(daemon, store, capsys):
    def module(**args):
        with patch_module_args({"uri": daemon.uri(), **args}), pytest.raises(SystemExit):
            secret.main()
        output = capsys.readouterr()
        assert CANARY not in output.out + output.err
        return json.loads(output.out)

    return module


def both(run, **args):
    """The same call in check mode, for real, and again; returns the real result."""
    predicted = run(**args, _ansible_check_mode=True)
    real = run(**args)
    for key in ("changed", "actions", "diff", "secret"):
        assert predicted[key] == real[key]
    again = run(**args)
    assert (again["changed"], again["actions"], again["secret"]) == (False, [], real["secret"])
    return real


def test_a_secret_from_nothing_to_nothing(run, store):
    made = both(run, usage="san1", value=CANARY, description="CHAP of san1")
    assert made["actions"] == ["define secret san1", "set its value"] and made["secret"]["has_value"] is True
    uuid = made["secret"]["uuid"]
    assert store.secret_value(uuid) == CANARY.encode()
    changed = both(run, usage="san1", description="CHAP")
    assert changed["actions"] == ["change secret san1"] and changed["secret"]["uuid"] == uuid
    assert store.secret_value(uuid) == CANARY.encode()
    assert both(run, usage="san1", value="another")["actions"] == ["set its value"]
    assert both(run, usage="san1", state="absent")["actions"] == ["remove secret san1"]
    assert store.secrets() == []
    assert run(usage="san1", state="absent")["changed"] is False


def test_a_value_that_was_changed_elsewhere_is_put_right(run, store):
    uuid = both(run, usage="san1", value=CANARY)["secret"]["uuid"]
    store.set_secret_value(uuid, b"drifted")
    assert both(run, usage="san1", value=CANARY)["actions"] == ["set its value"]


def test_a_ceph_key_is_stored_decoded_and_apart_from_iscsi(run, store):
    key = base64.b64encode(CANARY.encode()).decode()
    both(run, usage="san1", value="x")
    made = both(run, usage="san1", type="ceph", value=key)
    assert store.secret_value(made["secret"]["uuid"]) == CANARY.encode()
    assert {one.type for one in store.secrets()} == {"ceph", "iscsi"}


def test_a_secret_that_is_there_keeps_its_uuid_and_gets_its_missing_value(run, store):
    uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f"
    usage = "<usage type='iscsi'><target>san1</target></usage>"
    store.define_secret(f"<secret ephemeral='yes'><uuid>{uuid}</uuid>{usage}</secret>")
    result = both(run, usage="san1", value=CANARY)
    assert result["secret"]["uuid"] == uuid and store.secret_value(uuid) == CANARY.encode()


def test_a_private_secret_is_refused_but_can_be_removed(run, store):
    xml = "<secret private='yes'><usage type='iscsi'><target>san1</target></usage></secret>"
    store.define_secret(xml)
    assert run(usage="san1")["changed"] is False
    result = run(usage="san1", value=CANARY)
    assert result["failed"] and "private" in result["msg"]
    assert both(run, usage="san1", state="absent")["changed"]


@pytest.mark.parametrize(
    "args, words",
    [
        ({"usage": "san1"}, "value is missing"),
        ({"usage": "san1", "value": ""}, "value is empty"),
        ({"usage": "a b", "value": "x"}, "usage: 'a b' is not a valid name"),
        ({"usage": "../x", "value": "x"}, "usage: "),
        ({"usage": "c", "type": "ceph", "value": CANARY}, "not a Ceph key in Base64"),
        ({"usage": "san1", "type": "tls", "value": "x"}, "type must be one of: iscsi, ceph"),
    ],
)
def test_bad_input_names_the_option_and_changes_nothing(run, store, args, words):
    result = run(**args)
    assert result["failed"] and words in result["msg"] and store.secrets() == []
