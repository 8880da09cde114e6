# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which volume a logical unit is: what a unit says of itself, and the library itself with a real tgtd."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from ctypes.util import find_library

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _libiscsi
from ansible_collections.drover.kvm.plugins.module_utils._errors import NotFound, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._libiscsi import Login, parse_page, wwids
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt import Tgt
from ansible_collections.drover.kvm.plugins.module_utils._volume_rules import tgt_wwid
from ansible_collections.drover.kvm.tests.unit.tgt_server import PREFIX, PrivateSan, missing

NAA, EUI, PORT = "6001405ee27ff29e2f44851b1dc257c9", "0025385881b1d2c3", "500140512345678a"
CHAP = ("drover", "ChapOfTheLab42")
SERIALS = ("00c0ffee00c0ffee", "00c0ffee00c0fff0")
INITIATOR = "iqn.2026-11.test.vm:one"


def designator(kind: int, value: bytes, association: int = 0) -> bytes:
    """As in SPC-4, 7.8.5: code set, association and kind, length, value."""
    return bytes([1, association << 4 | kind, 0, len(value)]) + value


def page(*designators: bytes) -> bytes:
    """The answer of a unit, in a buffer that is bigger."""
    text = b"".join(designators)
    return bytes([0, 0x83]) + len(text).to_bytes(2, "big") + text + bytes(64)


def test_a_unit_is_called_as_udev_calls_it():
    vendor, port = designator(1, b"LIO-ORG web1"), designator(3, bytes.fromhex(PORT), association=1)
    names = [designator(3, bytes.fromhex(NAA)), designator(2, bytes.fromhex(EUI))]
    assert parse_page(page(vendor, port, *names)) == [f"3{NAA}", f"2{EUI}"]
    assert parse_page(page(vendor, port)) == [] == parse_page(page())


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_of_a_page_that_is_cut_off_only_whole_names_count(cut):
    whole = page(designator(3, bytes.fromhex(NAA)), designator(3, bytes.fromhex(PORT)))
    assert parse_page(whole[:cut]) == [f"3{NAA}", f"3{PORT}"][: (cut >= 24) + (cut >= 36)]


def test_without_the_library_the_package_is_named(monkeypatch):
    monkeypatch.setattr(_libiscsi, "find_library", lambda _name: None)
    with pytest.raises(NotFound, match="qemu-block-extra"):
        wwids(Login("10.231.5.10:3260", "iqn.2026-11.org.example:a", 1, "iqn.2026-11.org.example:hv1"))


@pytest.fixture
def san():
    """A target with two units, into which one initiator is let, with CHAP."""
    if missing():
        pytest.skip(f"not here: {missing()}")
    with closing(PrivateSan()) as found:
        found.admin("new", "target", "-T", f"{PREFIX}:a")
        for lun, serial in enumerate(SERIALS, start=1):
            found.add_unit(lun, serial)
        found.admin("new", "account", "--user", CHAP[0], "--password", CHAP[1])
        found.admin("bind", "account", "--user", CHAP[0])
        found.admin("bind", "target", "--initiator-name", INITIATOR)
        yield found


def login(san: PrivateSan, lun: int = 1) -> Login:
    return Login(f"127.0.0.1:{san.port}", f"{PREFIX}:a", lun, INITIATOR, *CHAP)


def test_a_real_target_says_which_volume_each_number_is(san):
    first, second = wwids(login(san, 1)), wwids(login(san, 2))
    assert tgt_wwid(SERIALS[0]) in first and tgt_wwid(SERIALS[1]) in second and not set(first) & set(second)
    assert not Tgt().targets()[f"{PREFIX}:a"].sessions, "it logged out"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lun": 7}, "LOGICAL_UNIT_NOT_SUPPORTED"),
        ({"password": "another-one1"}, "Authentication failure"),
        ({"user": None}, "Authentication failure"),
        ({"initiator": f"{INITIATOR}-else"}, "Target not found"),
        ({"target": f"{PREFIX}:b"}, "Target not found"),
        ({"portal": "127.0.0.1:1"}, "127.0.0.1:1: "),
    ],
)
def test_what_keeps_it_from_answering_is_told_in_its_own_words(san, change, words):
    with pytest.raises(Unreachable) as told:
        wwids(login(san)._replace(**change))
    assert words in told.value.message and CHAP[1] not in f"{told.value.message}{told.value.details}"


@pytest.mark.skipif(find_library("iscsi") is None, reason="libiscsi is not here")
def test_a_san_that_is_silent_costs_no_more_than_its_time():
    with closing(socket.create_server(("127.0.0.1", 0))) as deaf:
        begin = time.monotonic()
        with pytest.raises(Unreachable, match=r"gave no answer within 0\.5 s"):
            wwids(Login(f"127.0.0.1:{deaf.getsockname()[1]}", f"{PREFIX}:a", 1, INITIATOR), seconds=0.5)
        assert time.monotonic() - begin < 10
