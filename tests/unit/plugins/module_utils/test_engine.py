# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine, driven by a small stateful fake: a shelf of boxes with a size and a secret."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _resource
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Invalid, Refused, TimedOut, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, normalise, parse_size
from ansible_collections.drover.kvm.plugins.module_utils._run import bounded, run

FIELDS = (
    Field("name", required=True),
    Field("size", type="size"),
    Field("secret", no_log=True),
    Field("state", choices=("present", "absent"), default="present"),
)
SHELF: dict[str, dict[str, Any]] = {}
CALLS: list[str] = []
BROKEN: set[str] = set()


class Box(_resource.Resource):
    """A box; one named in BROKEN ignores changes, one bigger than 1 GiB is refused."""

    @classmethod
    def connect(cls, params):
        @contextmanager
        def opened():
            CALLS.append("connect")
            try:
                yield SHELF
            finally:
                CALLS.append("let go")

        return opened()

    def read(self):
        CALLS.append(f"read {self.name}")
        return dict(SHELF[self.name]) if self.name in SHELF else None

    def wanted(self, before):
        if self.params["state"] == "absent":
            return None
        if (self.params["size"] or 0) > 2**30:
            raise Refused(f"{self.name} would not fit")
        given = {key: self.params[key] for key in ("size", "secret") if self.params[key] is not None}
        return {"size": 1, "secret": None, **(before or {}), **given}

    def steps(self, before, wanted):
        if before == wanted:
            return []
        return [_resource.Step(f"put {self.name}", lambda: self._put(wanted), done=lambda: self._seen(wanted))]

    def _put(self, state):
        if self.name == "fails":
            raise Failed("the shelf says no")
        if self.name in BROKEN:
            return
        SHELF.pop(self.name, None)
        if state is not None:
            SHELF[self.name] = state

    def _seen(self, wanted):
        return True if self.name in BROKEN or SHELF.get(self.name) == wanted else "still moving"


@pytest.fixture(autouse=True)
def clean():
    SHELF.clear()
    CALLS.clear()
    BROKEN.clear()


def module(capsys, items="boxes", **args):
    with patch_module_args(args), pytest.raises(SystemExit):
        _resource.run_module(Box, FIELDS, items=items, required_one_of=[("name", "boxes")] if items else [])
    return json.loads(capsys.readouterr().out)


def test_check_mode_predicts_and_a_second_run_changes_nothing(capsys):
    predicted = module(capsys, name="a", size="4KiB", _ansible_check_mode=True)
    assert SHELF == {}
    real = module(capsys, name="a", size="4KiB")
    assert SHELF == {"a": {"size": 4096, "secret": None}}
    for key in ("changed", "actions", "diff", "resource"):
        assert predicted[key] == real[key]
    assert real["changed"] and real["actions"] == ["put a"]
    again = module(capsys, name="a", size="4KiB")
    assert not again["changed"] and again["actions"] == []


def test_the_diff_holds_what_differs_and_nothing_else(capsys):
    module(capsys, name="a", size=4096, secret="one")
    same = module(capsys, name="a", size=4096)["diff"]
    assert same["before"] == same["after"] == {}
    bigger = module(capsys, name="a", size=8192)["diff"]
    assert (bigger["before"], bigger["after"]) == ({"size": 4096}, {"size": 8192})
    other = module(capsys, name="a", size=8192, secret="two")["diff"]
    assert other["before"] == other["after"] == {"secret": "********"}


@pytest.mark.parametrize("args", [{"name": "a"}, {"name": "fails"}, {"name": "a", "size": "2GiB"}])
def test_nothing_is_held_while_the_result_waits_for_a_reader(capsys, monkeypatch, args):
    """One that nobody reads, of more than a pipe holds, waits for ever."""
    tell = basic.AnsibleModule._return_formatted

    def said(self, result):
        CALLS.append("told")
        tell(self, result)

    monkeypatch.setattr(basic.AnsibleModule, "_return_formatted", said)
    module(capsys, **args)
    assert CALLS[-2:] == ["let go", "told"]


def test_an_option_without_effect_is_an_error(capsys):
    BROKEN.add("a")
    result = module(capsys, name="a")
    assert result["failed"] and result["error"] == "NotConverged" and "put a" in result["msg"]


def test_one_refused_item_stops_the_task_before_the_first_change(capsys):
    result = module(capsys, boxes=[{"name": "a"}, {"name": "b", "size": "2GiB"}])
    assert result["failed"] and "b would not fit" in result["msg"] and not result["changed"]
    assert SHELF == {}


def test_items_inherit_the_other_options_and_share_one_connection(capsys):
    result = module(capsys, size="8", boxes=[{"name": "a"}, {"name": "b", "size": "16"}])
    assert {name: box["size"] for name, box in SHELF.items()} == {"a": 8, "b": 16}
    assert CALLS.count("connect") == 1
    assert result["actions"] == ["a: put a", "b: put b"]
    assert [diff["after"]["size"] for diff in result["diff"]] == [8, 16]


def test_what_no_item_inherits_is_looked_at_all_the_same(capsys):
    assert not module(capsys, boxes=[])["changed"] and not SHELF
    result = module(capsys, size="much", boxes=[])
    assert result["failed"] and "size" in result["msg"], result


def test_a_failing_item_lets_the_others_finish(capsys):
    result = module(capsys, boxes=[{"name": "fails"}, {"name": "b"}])
    assert result["failed"] and result["completed"] == ["b"] and "b" in SHELF
    assert "fails: the shelf says no" in result["msg"]


def test_the_same_item_twice_is_refused(capsys):
    assert "listed twice: a" in module(capsys, boxes=[{"name": "a"}, {"name": "a"}])["msg"]


def test_secrets_never_show(capsys):
    result = module(capsys, boxes=[{"name": "a", "secret": "tr0ub4dor&3"}])
    assert SHELF["a"]["secret"] == "tr0ub4dor&3"
    assert "tr0ub4dor" not in json.dumps(result)


def test_a_step_that_never_gets_there_says_what_was_seen():
    step = _resource.Step("close the lid", lambda: None, done=lambda: "lid open", timeout=0.2)
    start = time.monotonic()
    with pytest.raises(Exception, match="close the lid: not there after 0.2 s; last seen: lid open"):
        step.run()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "text,size", [("4GiB", 4 << 30), ("4 GiB", 4 << 30), ("512M", 512 << 20), (4096, 4096), ("0", 0)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["4GB", "4g", "-1", "1e9", "0x10", "", "NaN", 1.5, True, "9" * 30, "٤"])
def test_bad_sizes_name_the_option_and_the_mend(text):
    with pytest.raises(Invalid, match="size: .*such as 4GiB"):
        normalise(FIELDS, {"name": "a", "size": text})


def test_bounded_calls_end_in_time_and_keep_the_good_answers():
    start = time.monotonic()
    answers = bounded({"good": lambda: {"x": 1}, "hung": lambda: time.sleep(60), "bad": lambda: 1 / 0}, 1.0)
    assert time.monotonic() - start < 10
    assert answers["good"] == {"x": 1}
    assert isinstance(answers["hung"], Unreachable) and isinstance(answers["bad"], Unreachable)
    assert "division" in str(answers["bad"])


def test_commands_fail_with_their_own_words():
    with pytest.raises(Failed, match="No such file"):
        run(["ls", "/nowhere-at-all"])


def test_a_command_out_of_time_leaves_nothing_running(tmp_path):
    start = time.monotonic()
    with pytest.raises(TimedOut, match="no answer within 0.3 s"):
        run(["sh", "-c", f"(sleep 2; echo x > {tmp_path}/late) & wait"], timeout=0.3)
    assert time.monotonic() - start < 1.5
    time.sleep(2)
    assert not (tmp_path / "late").exists()


def test_a_tied_command_ends_with_who_started_it(tmp_path):
    place = tmp_path / "number"
    command = ["sh", "-c", f"echo $$ >{place}.new; mv {place}.new {place}; sleep 60"]
    child = get_context("fork").Process(target=run, args=(command,), kwargs={"tied": True})
    child.start()
    end = time.monotonic() + 20
    while not place.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    child.kill()
    child.join()
    started = Path("/proc", place.read_text().strip(), "cmdline")
    while started.exists() and "sleep 60" in started.read_bytes().decode().replace("\0", " "):
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.02)


def test_engine_uses_the_module_of_ansible():
    assert vars(_resource)["AnsibleModule"] is basic.AnsibleModule


@pytest.mark.parametrize("elements", ["int", "str", "dict", "size"])
def test_an_empty_item_of_a_list_is_refused_by_its_name(elements):
    with pytest.raises(Invalid, match="^things: an item of the list is empty"):
        normalise((Field("things", type="list", elements=elements),), {"things": [None]})
