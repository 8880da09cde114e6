# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the house: which part may import which, what only one file does, and how long things get."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "ansible_collections.drover.kvm."
FUNCTION_LINES = 40
MODULE_CODE_LINES = 120
TABLES = {"DOCUMENTATION", "EXAMPLES", "RETURN", "FIELDS"}

# A unit imports only units further down. What is not named here is a client: a thin layer over one system.
LAYERS = [
    {"modules", "action", "inventory", "filter", "lookup", "callback", "doc_fragments"},
    {"plugin_utils"},
    {"_migration", "_snapshot", "_backup"},
    {"_domain", "_networkd"},
    {"_disks", "_cluster", "_bridge", "_volume", "_session", "_peers", "_quiesce"},
    {"_rollback"},
    {"_resource", "client"},
    {"_checksum", "_fields", "_files", "_run", "_hypervisor"},
    {"_errors"},
]
FAMILIES = ("_volume", "_target_tgt", "_session")  # Several files, one unit.
DEPTH = {unit: depth for depth, layer in enumerate(LAYERS) for unit in layer}
PURE = {"_fields", "_hypervisor", "_cluster", "filter"}
ENGINE = {"module_utils/_resource.py", "plugin_utils/_action.py"}
ENGINE_WORDS = {"check_mode", "fail_json", "exit_json"}
LIBRARIES = {"libvirt": "_libvirt.py", "rados": "_ceph.py", "rbd": "_rbd.py"}
PROCESS = {"subprocess", "multiprocessing", "pty"}
PROCESS_CALLS = re.compile(r"(os\.(system|popen|fork|forkpty|exec\w+|spawn\w+|posix_spawn\w*)|.*\.run_command)$")
DISCOVERY = {"importlib", "pkgutil", "__import__"}
# A letter in brackets, so that this file does not say them itself.
SILENCED = re.compile(r"#\s*([n]oqa|type:\s*[i]gnore|pylint:\s*[d]isable)|\b([T]ODO|[F]IXME)\b")
UNSAFE = re.compile(r"shell\s*=\s*[T]rue|StrictHostKeyChecking[= ][n]o\b|VIR_MIGRATE_[U]NSAFE")


def unit_of(parts: tuple[str, ...]) -> str:
    """Name the unit of a path or dotted name below plugins/: a package or file of module_utils, else a plugin kind."""
    if parts[0] != "module_utils" or len(parts) == 1:
        return parts[0]
    name = parts[1].removesuffix(".py")
    return next((family for family in FAMILIES if name.startswith(f"{family}_")), name)


def depth_of(unit: str) -> int:
    return DEPTH.get(unit, DEPTH["client"])


def imports(tree: ast.Module, parts: tuple[str, ...]) -> Iterator[str]:
    """Yield each imported name in full; those of the collection start with "plugins."."""
    package = [*PREFIX.rstrip(".").split("."), "plugins", *parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix(PREFIX) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])]).removeprefix(PREFIX)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_problems(tree: ast.Module, parts: tuple[str, ...]) -> Iterator[str]:
    own = unit_of(parts)
    names = set(imports(tree, parts))
    for other in sorted({unit_of(tuple(name.split(".")[1:])) for name in names if name.startswith("plugins.")}):
        sideways = other == own and own != "modules"
        if not sideways and depth_of(other) <= depth_of(own):
            yield f"{own} imports {other}: imports go one way"
    for name in sorted(names):
        top = name.split(".")[0]
        if top == "ansible" and own in PURE:
            yield f"{own} is pure, it imports {name}"
        elif parts[-1] != LIBRARIES.get(top.split("_")[0], parts[-1]):
            yield f"only {LIBRARIES[top.split('_')[0]]} imports {top}"
        elif top in PROCESS and parts[-1] != "_run.py":
            yield f"only _run.py starts processes, this imports {top}"
        elif top in DISCOVERY:
            yield f"imports are static, this imports {top}"


def word_problems(tree: ast.Module, parts: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)):
            word = node.attr if isinstance(node, ast.Attribute) else node.id
            if word in ENGINE_WORDS and "/".join(parts) not in ENGINE:
                yield f"line {node.lineno}: only the engine knows {word}"
            if PROCESS_CALLS.match(ast.unparse(node)) and parts[-1] != "_run.py":
                yield f"line {node.lineno}: only _run.py starts processes"
            if word in DISCOVERY:
                yield f"line {node.lineno}: imports are static"


def length_problems(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {lines} lines, {FUNCTION_LINES} are a screen"


def name_problems(tree: ast.Module) -> Iterator[str]:
    """Yield what pylint refuses minutes later in ansible-test: a name that nothing reads has one that says so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "_":
            yield f"line {node.lineno}: _ is no name, dummy is"


def code_lines(tree: ast.Module, text: str) -> int:
    """Count the lines that are no blank, comment, docstring, documentation block or FIELDS table."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_table = isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id in TABLES for t in node.targets
        )
        if isinstance(node, (ast.Expr, ast.Assign)) and (is_text or is_table):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for number, line in lines if number not in skipped and not re.match(r"\s*(#|$)", line))


def files(root: Path, *suffixes: str) -> Iterator[Path]:
    """Yield our own files; tests/output is what ansible-test leaves."""
    for folder in ("plugins", "roles", "playbooks", "tests"):
        paths = (path for path in (root / folder).rglob("*") if path.suffix in suffixes)
        yield from sorted(path for path in paths if root / "tests" / "output" not in path.parents)


def problems(root: Path) -> list[str]:
    """List what breaks the rules in a checkout."""
    found = []
    for path in files(root, ".py"):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        parts = path.relative_to(root).parts
        words = [*length_problems(tree), *name_problems(tree)]
        if parts[0] == "plugins":
            words += [*import_problems(tree, parts[1:]), *word_problems(tree, parts[1:])]
            if parts[1] == "modules" and code_lines(tree, text) > MODULE_CODE_LINES:
                words.append(f"{code_lines(tree, text)} lines of code, a module has {MODULE_CODE_LINES}")
        found += [f"{'/'.join(parts)}: {word}" for word in words]
        if parts[:2] == ("tests", "unit") and parts[2] in {"module_utils", *LAYERS[0]}:
            found.append(f"{'/'.join(parts)}: ansible-test looks for it below tests/unit/plugins")
    for path in files(root, ".py", ".yml", ".j2", ".sh"):
        text = path.read_text(encoding="utf-8")
        hits = [*SILENCED.finditer(text), *UNSAFE.finditer(text)]
        found += [f"{path.relative_to(root)}: says {hit.group()}" for hit in hits]
    return found


def test_the_house_is_in_order():
    assert problems(ROOT) == []


LONG = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
BAD = [
    ("plugins/module_utils/_cluster/plan.py", "import ansible", "pure"),
    ("plugins/module_utils/_fields.py", "from ansible.module_utils.basic import x", "pure"),
    ("plugins/filter/plan.py", "from ansible.errors import AnsibleError", "pure"),
    ("plugins/module_utils/_ovs.py", "from ._libvirt import connect", "one way"),
    ("plugins/module_utils/_ovs.py", "from . import _ceph", "one way"),
    ("plugins/module_utils/_errors.py", "from ._run import run", "one way"),
    ("plugins/module_utils/_disks/rbd.py", "from .._domain.disks import x", "one way"),
    ("plugins/module_utils/_resource.py", f"from {PREFIX}plugins.modules.vm import main", "one way"),
    ("plugins/modules/vm_info.py", f"import {PREFIX}plugins.modules.vm", "one way"),
    ("plugins/action/plan.py", f"from {PREFIX}plugins.modules import plan", "one way"),
    ("plugins/modules/vm.py", "import libvirt", "only _libvirt.py"),
    ("plugins/modules/vm.py", "from libvirt_qemu import x", "only _libvirt.py"),
    ("plugins/modules/vm.py", "import rados", "only _ceph.py"),
    ("plugins/modules/vm.py", "import subprocess", "only _run.py"),
    ("plugins/modules/vm.py", "import os\nos.execv('x', [])", "only _run.py"),
    ("plugins/modules/vm.py", "module.run_command('x')", "only _run.py"),
    ("plugins/modules/vm.py", "module.fail_json(msg='x')", "only the engine"),
    ("plugins/action/plan.py", "print(self._task.check_mode)", "only the engine"),
    ("plugins/module_utils/_domain/all.py", "import importlib", "static"),
    ("plugins/module_utils/_domain/all.py", "__import__('x')", "static"),
    ("plugins/modules/vm.py", "x = 1\n" * (MODULE_CODE_LINES + 1), "lines of code"),
    ("roles/lab/files/lab.py", LONG, "a screen"),
    ("tests/unit/test_x.py", "x = [1 for _ in 'ab']", "no name"),
    ("tests/unit/test_x.py", "import x  # no" + "qa", "says"),
    ("tests/unit/modules/test_x.py", "x = 1", "below tests/unit/plugins"),
    ("playbooks/site.yml", "x: StrictHostKeyChecking=" + "no", "says"),
]


@pytest.mark.parametrize("path, text, words", BAD)
def test_the_checker_finds_what_is_wrong(tmp_path, path, text, words):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    found = problems(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(path)
    assert words in found[0]


GOOD = [
    (
        "plugins/module_utils/_domain/disks.py",
        "from .._disks import rbd\nfrom .._resource import Step",
    ),
    ("plugins/module_utils/_ovs.py", "from ._run import run\nfrom ._errors import Failed"),
    ("plugins/module_utils/_run.py", "import subprocess\nsubprocess.run(['x'])"),
    ("plugins/module_utils/_resource.py", "def main(module):\n    module.exit_json(changed=module.check_mode)"),
    ("plugins/modules/vm.py", 'DOCUMENTATION = """' + "x\n" * 200 + '"""\nmain(supports_check_mode=True)'),
]


@pytest.mark.parametrize("path, text", GOOD)
def test_the_checker_leaves_the_rest_alone(tmp_path, path, text):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    assert problems(tmp_path) == []
