# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module networkd against a private systemd-networkd and the kernel's bridges (bonds and VLANs: tests/lab)."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.tests.unit import networkd_server

pytestmark = [pytest.mark.skipif(bool(networkd_server.missing()), reason=networkd_server.missing()), pytest.mark.slow]
BRIDGE = {"name": "br100", "ports": [{"name": "nic1"}]}
GIVEN = {"name": "br100", "addresses": ["10.9.9.1/24"]}
SITE = {"bridges": [BRIDGE], "addresses": [GIVEN]}
FILES = "ls /etc/systemd/network"


@pytest.fixture
def machine():
    with networkd_server.private_networkd() as found:
        yield found


def good(result):
    assert not result.get("failed"), result["msg"]
    return result


def both(machine, **args):
    """The result of a change that check mode foretells, and that a second run does not make again."""
    predicted = good(machine.module(_ansible_check_mode=True, **args))
    made = good(machine.module(**args))
    assert made["changed"] and (made["actions"], made["diff"]) == (predicted["actions"], predicted["diff"])
    again = good(machine.module(**args))
    assert not again["changed"] and again["actions"] == [] and again["diff"]["before"] == again["diff"]["after"]
    assert again["resource"] == made["resource"] == predicted["resource"]
    return made


def refused(machine, *words, **args):
    before = machine.sh(f"{FILES}; ip -br link; ip -br address")
    result = machine.module(**args)
    assert result["failed"] and all(word in result["msg"] for word in words), result
    assert machine.sh(f"{FILES}; ip -br link; ip -br address") == before
    return result


def test_from_nothing_to_nothing(machine):
    machine.sh("echo '[Match]' >/etc/systemd/network/90-mine.network; ip link add br9 type bridge")
    predicted = good(machine.module(_ansible_check_mode=True, **SITE))
    assert predicted["changed"] and machine.link("br100") is None
    both(machine, **SITE)
    assert machine.ports("br100") == ["nic1"] and machine.addresses("br100") == ["10.9.9.1/24"]
    assert machine.link("br100")["operstate"] == "UP"
    gone = both(machine)
    assert gone["actions"] == ["remove bridge br100", "take nic1 out of br100"]
    assert machine.link("br100") is None and machine.sh(FILES).split() == ["90-mine.network"]
    assert machine.link("br9") is not None and "master" not in machine.link("nic1")


def test_settings_ports_and_addresses_change_in_place(machine):
    good(machine.module(**SITE))
    index = machine.link("br100")["ifindex"]
    machine.sh("ip tuntap add vnet0 mode tap && ip link set vnet0 master br100 up")
    ports = [{"name": "nic2", "stp_path_cost": 77, "stp_port_priority": 5}]
    bridge = {"name": "br100", "ports": ports, "stp": True, "stp_priority": 4096, "mtu": 1400, "mcast_snooping": False}
    given = {"name": "br100", "addresses": ["10.9.9.2/24", "fd00:9::2/64"], "gateway": ["10.9.9.254"]}
    given["routes"] = [{"to": "10.77.0.0/16", "via": "10.9.9.253"}]
    both(machine, bridges=[bridge], addresses=[given])
    link = machine.link("br100")
    assert (link["ifindex"], link["mtu"]) == (index, 1400)
    data = link["linkinfo"]["info_data"]
    assert (data["stp_state"], data["priority"], data["mcast_snooping"]) == (1, 4096, 0)
    assert machine.ports("br100") == ["nic2", "vnet0"] and machine.link("nic2")["mtu"] == 1400
    assert machine.addresses("br100") == ["10.9.9.2/24", "fd00:9::2/64"]
    routes = machine.run("ip", "route", "show", "dev", "br100")
    assert "default via 10.9.9.254" in routes and "10.77.0.0/16 via 10.9.9.253" in routes


LOSSES = {
    "bridge": ("ip link del br100", "make bridge br100 with 10.9.9.1/24"),
    "address": ("ip address flush dev br100", "give br100 the address 10.9.9.1/24"),
    "setting": ("ip link set br100 type bridge stp_state 1", "set br100: stp True -> False"),
    "half a run": ("mkdir -p /run/drover; touch /run/drover/networkd-pending", "finish the change"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_lost_is_made_good(machine, loss):
    good(machine.module(**SITE))
    script, words = LOSSES[loss]
    machine.sh(f"{script}; sleep 1")  # networkd answers a loss by itself
    made = both(machine, **SITE)
    assert any(words in text for text in made["actions"]), made["actions"]
    assert machine.ports("br100") == ["nic1"] and machine.addresses("br100") == ["10.9.9.1/24"]


def test_what_belongs_to_others_is_refused(machine):
    refused(machine, "no interface nic9", "nic1", bridges=[{"name": "br100", "ports": [{"name": "nic9"}]}])
    machine.sh("ip link add br100 type bridge; ip link set nic1 master br100")
    refused(machine, "br100 is there already", **SITE)
    refused(machine, "nic1 belongs to br100", bridges=[{"name": "br200", "ports": [{"name": "nic1"}]}])
    machine.sh("printf '[Match]\nName=nic2\n' >/etc/systemd/network/05-drover-nic2.network; networkctl reload; sleep 1")
    refused(machine, "05-drover-nic2.network", bridges=[{"name": "br200", "ports": [{"name": "nic2"}]}])


def test_a_bridge_with_a_vm_is_not_removed(machine):
    good(machine.module(**SITE))
    machine.sh("ip tuntap add vnet0 mode tap && ip link set vnet0 master br100")
    refused(machine, "br100 carries vnet0")
    assert machine.ports("br100") == ["nic1", "vnet0"]


def test_the_branch_on_which_ansible_sits_is_not_cut(machine):
    machine.sh("ip address add 10.8.8.1/24 dev nic2; ip link set nic2 up; ip route add default via 10.8.8.254")
    taken = {"bridges": [{"name": "br100", "ports": [{"name": "nic2"}]}]}
    result = refused(machine, "nic2 carries the default route", **taken)
    assert result["error"] == "Refused" and result["details"] == {"devices": ["nic2"]}
    given = {"name": "br100", "addresses": ["10.8.8.1/24"], "gateway": ["10.8.8.254"]}
    both(machine, allow_connection_interface=True, addresses=[given], **taken)
    # Now it is ours: to lose it is refused, to add to it is not.
    refused(machine, "br100, nic2 carries")
    wider = {"bridges": [{"name": "br100", "ports": [{"name": "nic2"}, {"name": "nic3"}]}], "addresses": [given]}
    both(machine, **wider)
    assert machine.ports("br100") == ["nic2", "nic3"]


CUTS = {
    "all gone": {},
    "other settings": {"bridges": [{**BRIDGE, "stp": True, "mtu": 1400}], "addresses": [GIVEN]},
    "other ports": {"bridges": [{"name": "br100", "ports": [{"name": "nic2"}]}, {"name": "br200"}]},
}


def state(machine):
    """What the rollback must bring back."""
    link = machine.link("br100")
    settings = {key: link["linkinfo"]["info_data"][key] for key in ("stp_state", "priority")}
    names = [name for name in machine.sh("ls /sys/class/net").split() if not name.startswith("br200")]
    files = machine.sh("cat /etc/systemd/network/06-*")
    return machine.addresses("br100"), machine.ports("br100"), settings, link["mtu"], names, files


@pytest.mark.parametrize("cut", CUTS)
def test_an_unconfirmed_change_is_taken_back(machine, cut):
    good(machine.module(**SITE))
    before = state(machine)
    result = good(machine.module(confirm_timeout=60, **CUTS[cut]))
    assert result["changed"] and result["rollback"]["seconds"] == 60
    refused(machine, "waits for its confirmation", **SITE)
    assert machine.elapse() == "the network of the host is as before\n"
    machine.sh("sleep 3")
    assert state(machine) == before
    assert not good(machine.module(**SITE))["changed"]


def test_a_nic_that_networkd_did_not_know_gets_back_what_it_had(machine):
    machine.sh("ip address add 10.8.8.1/24 dev nic2; ip link set nic2 up; ip route add default via 10.8.8.254")
    good(machine.module(confirm_timeout=60, bridges=[{"name": "br100", "ports": [{"name": "nic2"}]}]))
    assert machine.addresses("nic2") == []
    machine.elapse()
    machine.sh("sleep 2")
    assert machine.addresses("nic2") == ["10.8.8.1/24"] and machine.link("br100") is None
    assert "default via 10.8.8.254 dev nic2" in machine.sh("ip route")
