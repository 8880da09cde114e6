# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random and hostile arguments, made from a module's FIELDS, and what must be true of the answers to them.

A few fixed examples by default. `DROVER_FUZZ=10000` tries so many others, each time new ones.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Callable

from hypothesis import HealthCheck, Phase, configuration, event, given, settings
from hypothesis import strategies as st

from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, normalise
from ansible_collections.drover.kvm.tests.unit import corpus

EXAMPLES = int(os.environ.get("DROVER_FUZZ", "0"))
# It keeps tables there; the checkout is no place for them.
configuration.set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), f"drover-hypothesis-{os.getuid()}"))

NUMBERS = [0, 1, -1, 2, 9, 10, 64, 100, 1500, 4094, 4095, 2**31, 2**63, -(2**63), 10**30, 1.5, 1e9, float("inf")]
TEXTS = [
    *(
        "true",
        "yes",
        "inf",
        "1e999999999",
        "no",
        "None",
        "null",
        "0",
        "-1",
        "1e9",
        "0x10",
        "4GB",
        "4 GiB",
        "4g",
        "NaN",
        "9" * 40,
        "\u0664",
    ),
    *("\u202egpj", "a\u0301", "\u00e1", "w\u0435b1", "\uff57eb1", "web1\u200b", "\U0001f4a9", "\x1b[31m", "\ufeffweb1"),
    *("all", "localhost", "a.b", "01:00:5e:00:00:01", "00:00:00:00:00:00", "::", "127.0.0.1/8", "fe80::1%eth0"),
    *("fd00::1/129", "10.0.0.1/33", "10.0.0.1:99999", "[::1]:3260", "nbd://10.0.0.1/x", "x" * 2**20),
    *corpus.NAMES,
    *corpus.PATHS,
    *corpus.SYSTEM_PATHS,
    *corpus.ODD_PATHS,
]
SHAPES: list[Any] = [
    [],
    {},
    [None],
    [[]],
    [{}],
    {"": ""},
    {"a": {"b": []}},
    [1, "a", None],
    {"add": "a"},
    {"set": {}},
    {"add": 5},
    {"set": [{}]},
]
HOSTILE: list[Any] = [*NUMBERS, float("nan"), True, False, *SHAPES, *TEXTS]
# Of these each option takes those that its own check lets through.
PLAUSIBLE: list[Any] = [
    *("web1", "db1", "br0", "br-int", "eth0", "eth1", "bond0", "vda", "vdb", "sda", "hv1", "rbd", "host", "a.b-c_d"),
    *("52:54:00:00:00:01", "52:54:00:00:00:02", "10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.21/24", "fd00::21/64"),
    *("10.0.0.0/24", "10.231.5.10:3260", "iqn.2026-11.org.example:a", "iqn.2026-11.org.example:b", "secretsecret12"),
    *("/srv/a", "/srv/b", "12345678-1234-5678-1234-567812345678", "64MiB", "128MiB", "1GiB", "10Mbit/s", "Nehalem"),
    *("2026-11-21T20:15:00Z", "client.libvirt", "disk", "network", "#cloud-config\n", ""),
    *(True, False, 0, 1, 2, 3, 4, 8, 16, 64, 100, 1000, 1500, 4094, 32768, 2**26, 2**30),
]
Path = tuple[str, ...]


def options(fields: Sequence[Field], path: Path = ()) -> Iterator[tuple[Path, Field]]:
    """All options at any depth, those that hold others too."""
    for field in fields:
        yield (*path, field.name), field
        yield from options(field.fields, (*path, field.name))


def passes(field: Field, value: Any) -> bool:
    """Whether the option's own check takes the value."""
    kinds = {"int": int, "bool": bool, "list": list, "dict": dict}
    if not isinstance(value, kinds.get(field.type, (str, int))) or (field.type != "bool" and isinstance(value, bool)):
        return False
    try:
        normalise([field], {field.name: value})
    except (DroverError, AttributeError, TypeError):
        return False
    return not field.choices or value in field.choices


def good(field: Field) -> list[Any]:
    """Values that the option takes."""
    if field.type == "bool":
        return [True, False]
    if field.choices and field.type != "list":
        return list(field.choices)
    if field.type == "list" and not field.fields:
        kind = int if field.elements == "int" else str
        likely = [value for value in PLAUSIBLE if isinstance(value, kind) and not isinstance(value, bool)]
        some = list(field.choices or likely)
        return [value for one, two in zip(some, some[1:]) for value in ([one], [one, two]) if passes(field, value)]
    return [value for value in PLAUSIBLE if passes(field, value)]


def put(args: dict[str, Any], fields: Sequence[Field], path: Path, value: Any) -> None:
    """Write a value at a path; a list on the way gets a first item, and what stands there already stays."""
    field = next(field for field in fields if field.name == path[0])
    if len(path) == 1:
        args[field.name] = value
        return
    inner = args.get(field.name)
    if field.type == "list":
        if not (isinstance(inner, list) and inner and isinstance(inner[0], dict)):
            args[field.name] = [{}]
        inner = args[field.name][0]
    elif not isinstance(inner, dict):
        inner = args[field.name] = {}
    put(inner, field.fields, path[1:], value)


def arguments(fields: Sequence[Field], bases: Sequence[Mapping[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of a module: one of `bases`, with some options changed to good values and some to hostile ones."""
    every = list(options(fields))
    fine = [(path, values) for path, field in every if (values := good(field))]

    @st.composite
    def build(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
        args = deepcopy(dict(draw(st.sampled_from(list(bases)))))
        for _number in range(draw(st.integers(0, 4)) if fine else 0):
            path, values = draw(st.sampled_from(fine))
            put(args, fields, path, deepcopy(draw(st.sampled_from(values))))
        for _number in range(draw(st.integers(0, 2))):
            path, field = draw(st.sampled_from(every))
            value = deepcopy(draw(st.sampled_from(HOSTILE)))
            wrap = field.type == "list" and not isinstance(value, list) and draw(st.booleans())
            put(args, fields, path, [value] if wrap else value)
        if draw(st.integers(0, 19)) == 0:
            args[draw(st.sampled_from(["colour", "\u202e", "name ", "vm_name", "_", "x" * 300]))] = "red"
        return args

    return build()


def fuzz(fields: Sequence[Field], *bases: Mapping[str, Any], quick: int = 40) -> Callable[[Any], Any]:
    """Decorator: the test gets `args`, again and again; `quick` is how often when no other number is asked for."""
    chosen = settings(
        max_examples=EXAMPLES or quick,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )

    def decorate(test: Any) -> Any:
        return chosen(given(args=arguments(fields, bases or [{}]))(test))

    return decorate


def answered(run: Callable[..., dict[str, Any]], look: Callable[[], Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The module's answer, proved: clear, foretold by check mode, nothing changed by a failure or by a second run.

    `look` shows all that the module could have changed.
    """
    before = look()
    foretold = run(**{**args, "_ansible_check_mode": True})
    assert look() == before, "check mode changed something"
    result = run(**args)
    for one in (foretold, result):
        assert isinstance(one.get("msg", ""), str) and "Traceback" not in json.dumps(one), one
    if result.get("failed"):
        assert result["msg"].strip() and len(result["msg"]) < 2**21, result
        assert "trace" not in result.get("details", {}), result
        assert not result.get("changed") and look() == before, ("a failure changed something", result)
        assert foretold.get("failed") and foretold["msg"] == result["msg"], (foretold, result)
        event(f"failed: {result.get('error', 'by Ansible')}")
        return result
    assert (foretold.get("failed"), foretold["changed"]) == (None, result["changed"]), (foretold, result)
    again = run(**args)
    assert not again.get("failed") and again["changed"] is False, again
    event("changed" if result["changed"] else "no change")
    return result
