# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module path_info: on a network of links with an MTU each, in place of the programs ip and ping."""

from __future__ import annotations

import json
import re

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _paths
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.modules import path_info


class Network:
    """One interface, and what each address is behind: the smallest MTU on the way, 0 for nobody, no entry: no route."""

    def __init__(self, mtu, behind):
        self.mtu, self.behind, self.pings = mtu, behind, []

    def run(self, argv, timeout, ok):
        """The program ping of iputils."""
        assert argv[0] == "ping" and argv[argv.index("-M") + 1] == "do"
        size, address = int(argv[argv.index("-s") + 1]), argv[-1]
        packet = size + (48 if ":" in address else 28)
        self.pings.append((address, packet))
        if packet > self.mtu:
            return "ping: sendmsg: Message too long\n3 packets transmitted, 0 received, +3 errors\n"
        arrives = packet <= self.behind[address]
        return f"3 packets transmitted, {3 if arrives else 0} received\n"

    def run_json(self, argv):
        """The program ip."""
        if argv[:4] == ["ip", "-json", "link", "show"]:
            return [{"ifname": argv[-1], "mtu": self.mtu}]
        assert argv[:4] == ["ip", "-json", "route", "get"]
        if argv[4] == "10.0.6.11":
            return [{"type": "local", "dst": argv[4], "dev": "lo", "prefsrc": argv[4]}]
        if argv[4] not in self.behind:
            raise Failed("ip failed", stderr="RTNETLINK answers: Network is unreachable")
        return [{"dst": argv[4], "dev": "migration0", "prefsrc": "10.0.6.11"}]


@pytest.fixture
def ask(monkeypatch, capsys):
    """Run the module on a network; its result and the network."""

    def run(interface_mtu, behind, **args):
        network = Network(interface_mtu, behind)
        monkeypatch.setattr(_paths, "run", network.run)
        monkeypatch.setattr(_paths, "run_json", network.run_json)
        with patch_module_args({"to": list(behind), **args}), pytest.raises(SystemExit):
            path_info.main()
        return json.loads(capsys.readouterr().out), network

    return run


def test_full_packets_arrive_and_are_asked_for_once(ask):
    result, network = ask(9000, {"10.0.6.12": 9000, "2001:db8:6::12": 9000})
    first, second = result["paths"]
    assert first["ok"] and first["mtu"] == first["largest"] == 9000 and first["interface"] == "migration0"
    assert second["ok"] and not result["changed"]
    assert sorted(network.pings) == [("10.0.6.12", 9000), ("2001:db8:6::12", 9000)]


def test_the_largest_size_that_arrives_is_named(ask):
    result, _network = ask(9000, {"10.0.6.12": 1500, "10.0.6.13": 9000})
    bad, good = result["paths"]
    assert good["ok"] and not bad["ok"] and bad["largest"] == 1500
    assert bad["message"] == (
        "10.0.6.12 by migration0: packets of 9000 bytes get lost, of 1500 arrive: a link on the way has a smaller MTU"
    )


def test_a_machine_that_is_silent_is_told_from_one_with_a_small_mtu(ask):
    path = ask(1500, {"10.0.6.12": 0})[0]["paths"][0]
    assert (path["ok"], path["largest"]) == (False, None)
    assert path["message"] == "10.0.6.12 by migration0: no answer, whatever the size"


def test_a_larger_size_than_the_interface_takes_is_not_sent(ask):
    path = ask(1500, {"10.0.6.12": 9000}, mtu=9000)[0]["paths"][0]
    assert (path["ok"], path["mtu"], path["largest"]) == (False, 9000, 1500)
    assert path["message"].endswith("of 1500 arrive: migration0 itself has the MTU 1500")


def test_a_neighbour_that_was_asleep_is_asked_again(ask, monkeypatch):
    run = Network.run

    def first_is_lost(self, argv, timeout, ok):
        answer = run(self, argv, timeout, ok)
        return answer if len(self.pings) > 1 else "3 packets transmitted, 0 received\n"

    monkeypatch.setattr(Network, "run", first_is_lost)
    assert ask(1500, {"10.0.6.12": 1500})[0]["paths"][0]["ok"]


def test_an_own_address_needs_no_ping(ask):
    result, network = ask(1500, {}, to=["10.0.6.11"])
    assert result["paths"][0]["ok"] and network.pings == []


def test_no_route_is_told(ask):
    path = ask(1500, {}, to=["10.9.9.9"])[0]["paths"][0]
    assert path["message"] == "10.9.9.9: no route: RTNETLINK answers: Network is unreachable"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"to": ["-f"]}, "'-f' is no IP address"),
        ({"to": ["hv1; reboot"]}, "is no IP address"),
        ({"to": ["10.0.6.12"], "mtu": 10}, "mtu: 10 is out of range; write a number from 68 to 65535"),
        ({"to": ["10.0.6.12"], "timeout": 0}, "timeout: 0 is out of range"),
    ],
)
def test_what_is_refused(ask, args, words):
    result, network = ask(1500, {"10.0.6.12": 1500}, **args)
    assert result["failed"] and re.search(re.escape(words), result["msg"]), result["msg"]
    assert network.pings == []
