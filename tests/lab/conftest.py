# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of a test session.

DROVER_LAB_NAME=NAME     which lab (default: drover-test)
DROVER_LAB_PREPARED=0    bare nodes, for stories that test the installation too
DROVER_LAB_KEEP=1        leave it up at the end; a lab that is up already is used as it is
DROVER_SEEDS=N           run each story that leaves something to chance (fixture `dice`) N times, in N orders

Two lanes of stories can run side by side, each with a lab of its own name: those on the site that is set up
(pytest --lane site), in their order, and all others (pytest --lane others).
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Generator, Iterator

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab import evidence
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, borrowed
from ansible_collections.drover.kvm.tests.lab.migration import Mover
from ansible_collections.drover.kvm.tests.lab.observer import Observer

CANARY = "DROVER-CANARY-7f3a"
TRAVELLER = "web1"
SEEDS = int(os.environ.get("DROVER_SEEDS", "0"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """The lane to run."""
    parser.addoption(
        "--lane", choices=["site", "others"], help="only the stories on the site that is set up, or all others"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other lane."""
    if lane := config.getoption("--lane"):
        lanes = ["site" if "site" in getattr(item, "fixturenames", ()) else "others" for item in items]
        config.hook.pytest_deselected(items=[item for item, own in zip(items, lanes) if own != lane])
        items[:] = [item for item, own in zip(items, lanes) if own == lane]
    shuffle(items)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each seed is a story of its own. One that takes `rounds` repeats by itself."""
    if SEEDS and "dice" in metafunc.fixturenames and "rounds" not in metafunc.fixturenames:
        metafunc.parametrize("dice", range(1, SEEDS + 1), indirect=True, ids=lambda seed: f"seed{seed}")


def shuffle(items: list[pytest.Item]) -> None:
    """Order the stories of a file that have seeds by these, and for each seed in another way; others come first."""

    def place(item: pytest.Item) -> tuple[str, int, float]:
        callspec = getattr(item, "callspec", None)
        seed = callspec.params.get("dice", 0) if callspec else 0
        return str(item.path), seed, random.Random(item.nodeid).random() if seed else 0.0

    if SEEDS:
        items.sort(key=place)


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random | None:
    """Chance by the seed in the story's name; None without DROVER_SEEDS: everything as early as can be."""
    seed = getattr(request, "param", None)
    return random.Random(seed) if seed else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a story that has failed goes what its nodes look like, before anything is put back."""
    report = yield
    if report.when == "call" and report.failed and (lab := evidence.lab_of(item)):
        report.sections.append(("The nodes after the failure", evidence.gather(lab)))
    return report


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A lab that is up. What there is of it is repaired, or taken down when it is of another kind."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    found = Lab(os.environ.get("DROVER_LAB_NAME", "drover-test"))
    prepared = os.environ.get("DROVER_LAB_PREPARED", "1") != "0"
    if found.settings and found.settings["prepared"] != prepared:
        found.down()
        found = Lab(found.name)
    with borrowed(found):
        found.up(prepared=prepared)
        found.restore()
        for machine in found.machines.values():
            machine.signal(machine.find("libvirtd"), signal.SIGCONT)
        yield found


@pytest.fixture(scope="session")
def site(lab: Lab) -> Cluster:
    """The site of examples/lab on that lab, without a VM yet."""
    found = Cluster(lab)
    found.play("site").good()
    return found


@pytest.fixture(scope="session")
def cluster(site: Cluster) -> Cluster:
    """That site with its six guests counting, slowly to leave stories the machine; a canary is in their memory."""
    found = site
    found.write_images(canary=CANARY, period="250")
    found.play("build_vms").good()
    with Observer(found.lab) as watch:
        for name in found.sheets():
            # Six emulated guests that boot at once on a busy machine took more than 90 s.
            watch.wait_word(name, seconds=240)
    return found


@pytest.fixture(scope="module")
def traveller(cluster: Cluster) -> Iterator[str]:
    """A VM that starts with its node, for stories that move it; at the end it is back where it was."""
    before = Mover(cluster, TRAVELLER, Observer(cluster.lab))
    started = before.autostart(before.source)
    before.virsh(before.source, "autostart", TRAVELLER)
    yield TRAVELLER
    now = before.home()
    if now != before.source:
        result = before.migrate(now, name=TRAVELLER, to=before.source)
        assert result.get("verified"), result
    if not started:
        before.virsh(before.source, "autostart", TRAVELLER, "--disable")


@pytest.fixture
def mover(cluster: Cluster, traveller: str, dice: random.Random | None) -> Iterator[Mover]:
    """That VM where it is now, watched; after the story all is mended, whatever became of it."""
    with Observer(cluster.lab) as watch:
        found = Mover(cluster, traveller, watch)
        found.leave_to(dice)
        watch.wait_word(traveller)
        yield found
        found.heal()
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
