# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module ksm on files that go by the kernel's rules, beside a systemd that knows other services."""

from __future__ import annotations

import json
import os
from functools import partial

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _ksm
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.modules import ksm
from ansible_collections.drover.kvm.tests.unit import hostile

PAGE = os.sysconf("SC_PAGE_SIZE")
BOOTED = {
    "run": "0",
    "pages_to_scan": "100",
    "sleep_millisecs": "20",
    "merge_across_nodes": "1",
    "max_page_sharing": "256",
    "use_zero_pages": "0",
    "smart_scan": "1",
    "advisor_mode": "[none] scan-time",
    "pages_shared": "0",
    "pages_sharing": "0",
    "ksm_zero_pages": "0",
}
NEW = ("smart_scan", "advisor_mode", "ksm_zero_pages")
UNIT = "Id={}\nActiveState={}\nUnitFileState={}\n"


class Kernel:
    """What mm/ksm.c does when its files are written, and what is at boot."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.units, self.kind, self.written = folder, {}, "none", []
        self.at_boot = folder.parent / "tmpfiles.d" / "drover-ksm.conf"
        folder.mkdir()
        self.boot()
        self.real_put = _ksm.put
        for name, value in {"FOLDER": folder, "AT_BOOT": self.at_boot, "put": self.put, "run": self.run}.items():
            monkeypatch.setattr(_ksm, name, value)

    def boot(self):
        for name, text in BOOTED.items():
            (self.folder / name).write_text(f"{text}\n")
        for line in self.at_boot.read_text().splitlines()[1:] if self.at_boot.exists() else []:
            kind, path, *_dashes, value = line.split()
            assert kind == "w"
            self.take(path.rsplit("/", 1)[1], value)

    def __getitem__(self, name):
        return (self.folder / name).read_text().strip()

    def __setitem__(self, name, text):
        (self.folder / name).write_text(f"{text}\n")

    def merge(self, pages, shared=1):
        self["pages_shared"], self["pages_sharing"] = shared, pages

    def put(self, name, value):
        self.written.append(name)
        self.real_put(name, value)
        (text,) = (self.folder / name).read_text().split()
        self.take(name, text)

    def take(self, name, text):
        if name in _ksm.UNMERGED and self["pages_shared"] != "0":
            raise Failed("Device or resource busy")
        advised = self["advisor_mode"].endswith("[scan-time]") if (self.folder / "advisor_mode").exists() else False
        if name == "pages_to_scan" and advised:
            raise Failed("Invalid argument")
        if name == "advisor_mode":
            self["pages_to_scan"] = {"none": 100, "scan-time": 500}[text]
            text = {"none": "[none] scan-time", "scan-time": "none [scan-time]"}[text]
        if (name, text) == ("run", "2"):
            self.merge(0, shared=0)
        self[name] = text

    def run(self, argv, timeout, ok=(0,)):
        assert timeout
        if argv[0] == "systemd-detect-virt":
            assert 1 in ok
            return f"{self.kind}\n"
        assert tuple(argv) == (*_ksm.SHOW, *_ksm.RIVALS)
        return "\n".join(UNIT.format(name, *self.units.get(name, ("inactive", ""))) for name in _ksm.RIVALS)

    def shown(self):
        texts = {path.name: path.read_text() for path in self.folder.iterdir()}
        return texts, self.at_boot.exists() and self.at_boot.read_text()


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    return Kernel(tmp_path / "ksm", monkeypatch)


@pytest.fixture
def run(capsys):
    def call(**options):
        with patch_module_args(options), pytest.raises(SystemExit):
            ksm.main()
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def both(kernel, run):
    """A real run after check mode, which foretold it, and before a second one, which finds nothing to do."""

    def call(**options):
        before = kernel.shown()
        foretold = run(**options, _ansible_check_mode=True)
        assert kernel.shown() == before
        done = run(**options)
        names = ("changed", "actions", "diff")
        assert not done.get("failed") and [foretold[name] for name in names] == [done[name] for name in names], done
        assert not run(**options)["changed"]
        return done

    return call


def test_it_is_on_now_and_after_a_boot_and_taken_back(kernel, both):
    file = f"write {kernel.at_boot}"
    assert both()["actions"] == ["run 0 -> 1", file]
    assert kernel.at_boot.read_text().splitlines()[-1] == f"w {kernel.folder}/run - - - - 1"
    done = both(pages_to_scan=1000, use_zero_pages=True)
    assert done["actions"] == ["pages_to_scan 100 -> 1000", "use_zero_pages False -> True", file]
    assert done["diff"]["before"]["pages_to_scan"] == 100 and done["diff"]["after"]["pages_to_scan"] == 1000
    kernel.boot()
    assert not both(pages_to_scan=1000, use_zero_pages=True)["changed"]
    assert (kernel["run"], kernel["pages_to_scan"], kernel["use_zero_pages"]) == ("1", "1000", "1")
    kernel.merge(7)
    off = both(state="absent")["actions"]
    assert off[0] == "give back what is merged (run 1 -> 2)" and off[-1] == f"remove {kernel.at_boot}"
    assert kernel.shown() == ({name: f"{text}\n" for name, text in BOOTED.items()}, False)


def test_what_it_has_not_set_is_left_alone(kernel, both):
    kernel["run"], kernel["pages_to_scan"] = 1, 500
    kernel.merge(7)
    assert not both(state="absent")["changed"] and kernel["run"] == "1" and kernel["pages_sharing"] == "7"


def test_what_was_changed_by_hand_is_set_again(kernel, both):
    both(sleep_millisecs=50)
    kernel["run"], kernel["sleep_millisecs"] = 0, 20
    assert both(sleep_millisecs=50)["actions"] == ["sleep_millisecs 20 -> 50", "run 0 -> 1"]


@pytest.mark.parametrize("option", [{"merge_across_nodes": False}, {"max_page_sharing": 64}])
@pytest.mark.parametrize("pages", [0, 7])
def test_what_changes_only_while_nothing_is_merged(kernel, both, option, pages):
    both()
    kernel.merge(pages)
    kernel.written.clear()
    assert both(**option)["actions"][0] == "give back what is merged (run 1 -> 2)"
    assert kernel.written == ["run", *option, "run"] and kernel["run"] == "1"


def test_stopping_leaves_merged_what_is_and_unmerging_does_not(kernel, both):
    both()
    kernel.merge(7)
    assert both(run=0)["actions"][0] == "run 1 -> 0" and kernel["pages_sharing"] == "7"
    assert both(run=2)["actions"][0] == "give back what is merged (run 0 -> 2)"
    assert (kernel["run"], kernel["pages_sharing"]) == ("2", "0")


def test_a_page_whose_sharers_have_ended_is_given_back_too(kernel, both):
    both(run=0)
    kernel.merge(0)
    assert both(run=0, merge_across_nodes=False)["actions"][0] == "give back what is merged (run 0 -> 2)"
    assert kernel["merge_across_nodes"] == "0"


def test_the_kernel_chooses_its_pace_and_no_longer(kernel, both):
    both(advisor_mode="scan-time", pages_to_scan=900)
    assert "pages_to_scan" not in kernel.at_boot.read_text()
    kernel["pages_to_scan"] = 1000
    assert not both(advisor_mode="scan-time", pages_to_scan=900)["changed"]
    kernel.boot()
    assert not both(advisor_mode="scan-time")["changed"]
    kernel["pages_to_scan"] = 1000
    both(pages_to_scan=1000)
    assert (kernel["advisor_mode"], kernel["pages_to_scan"]) == ("[none] scan-time", "1000")


def test_a_pace_of_ones_own_is_left_for_that_of_the_kernel(kernel, both):
    both(pages_to_scan=1000)
    kernel.written.clear()
    both(pages_to_scan=1000, advisor_mode="scan-time")
    assert "pages_to_scan" not in kernel.written and kernel["pages_to_scan"] == "500"


def test_an_older_kernel_has_the_rest_and_no_new_settings(kernel, both, run):
    for name in NEW:
        (kernel.folder / name).unlink()
    both(pages_to_scan=200)
    assert not any(name in kernel.at_boot.read_text() for name in NEW)
    for options in ({"smart_scan": False}, {"advisor_mode": "scan-time"}):
        refused = run(**options)
        assert refused["failed"] and f"has no {next(iter(options))} in" in refused["msg"]
    assert kernel["pages_to_scan"] == "200"


@pytest.mark.parametrize("state", [("active", "disabled"), ("inactive", "enabled"), ("activating", "static")])
def test_a_service_that_sets_it_too_is_named_and_nothing_changed(kernel, run, state):
    kernel.units["ksmtuned.service"] = state
    before = kernel.shown()
    refused = run(run=1)
    assert refused["failed"] and "systemctl disable --now ksmtuned.service" in refused["msg"]
    assert kernel.shown() == before
    kernel.units["ksmtuned.service"] = ("inactive", "disabled")
    assert run(run=1)["changed"]


def test_a_container_is_refused_and_its_hosts_ksm_is_not_touched(kernel, run):
    kernel.kind, kernel["run"] = "systemd-nspawn", 1
    before = kernel.shown()
    refused = run(run=1)
    assert refused["failed"] and "this is a container (systemd-nspawn)" in refused["msg"]
    assert not run(state="absent")["changed"] and kernel.shown() == before
    # As in an image that was made of a node.
    kernel.at_boot.parent.mkdir()
    kernel.at_boot.write_text(_ksm.HEAD)
    assert run(state="absent")["actions"] == [f"remove {kernel.at_boot}"] and kernel.shown() == before


def test_a_kernel_without_it_is_named(kernel, run):
    for path in kernel.folder.iterdir():
        path.unlink()
    refused = run()
    assert refused["failed"] and "CONFIG_KSM" in refused["msg"] and not kernel.at_boot.exists()
    assert not run(state="absent")["changed"] and _ksm.merged() is None


def test_without_the_memory_for_it_nothing_is_given_back(kernel, run, monkeypatch):
    run()
    kernel.merge(1000)
    before = kernel.shown()
    spare = os.sysconf("SC_PHYS_PAGES") // ksm.SPARE * PAGE
    monkeypatch.setattr(ksm, "available_memory", lambda: 1000 * PAGE + spare - 1)
    for options in ({"run": 2}, {"state": "absent"}, {"max_page_sharing": 64}):
        refused = run(**options)
        assert refused["failed"] and "move VMs away first" in refused["msg"], refused
        assert refused["details"]["needed"] == 1000 * PAGE + spare
    assert kernel.shown() == before
    assert run(run=0)["changed"]
    monkeypatch.setattr(ksm, "available_memory", lambda: 1000 * PAGE + spare)
    assert run(state="absent")["changed"]


@pytest.mark.parametrize("at", range(4))
def test_a_run_that_was_cut_off_is_finished_by_the_next(kernel, run, monkeypatch, at):
    run(pages_to_scan=200)
    kernel.merge(7)
    real = _ksm.put

    def cut(name, value):
        if len(kernel.written) == at:
            raise Failed("cut off")
        real(name, value)

    kernel.written.clear()
    monkeypatch.setattr(_ksm, "put", cut)
    assert run(state="absent").get("failed", False) == (at < 3)
    monkeypatch.setattr(_ksm, "put", real)
    run(state="absent")
    assert kernel.shown() == ({name: f"{text}\n" for name, text in BOOTED.items()}, False)


def test_a_value_that_the_kernel_does_not_take_is_named(kernel, run, monkeypatch):
    monkeypatch.setattr(_ksm, "put", kernel.real_put)
    (kernel.folder / "run").unlink()
    (kernel.folder / "run").mkdir()
    with pytest.raises(Failed, match="the kernel does not take 1 for .*/run: Is a directory"):
        _ksm.put("run", 1)


def test_empty_pages_count_as_merged_too(kernel):
    kernel["ksm_zero_pages"] = 5
    kernel.merge(2)
    assert _ksm.merged() == 7 * PAGE


@pytest.mark.parametrize(
    "option, words",
    [
        ({"run": 3}, "3 is out of range; write a number from 0 to 2"),
        ({"pages_to_scan": 0}, "0 is out of range"),
        ({"sleep_millisecs": -1}, "-1 is out of range"),
        ({"max_page_sharing": 1}, "1 is out of range"),
        ({"advisor_mode": "fast"}, "value of advisor_mode must be one of"),
    ],
)
def test_what_the_kernel_would_not_take_is_refused(kernel, run, option, words):
    refused = run(**option)
    assert refused["failed"] and words in refused["msg"] and not kernel.written


@hostile.fuzz(ksm.FIELDS, quick=20)
def test_any_input_gets_a_clear_answer(kernel, run, args):
    hostile.answered(partial(run), kernel.shown, args)
    run(state="absent")
