# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a variable of a role comes to, without Ansible around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.filter.core import FilterModule
from ansible.plugins.filter.mathstuff import FilterModule as Sets
from ansible.plugins.test.core import TestModule
from jinja2 import Environment, StrictUndefined, select_autoescape
from jinja2.filters import FILTERS

from ansible_collections.drover.kvm.plugins.filter.network_of import network_of
from ansible_collections.drover.kvm.plugins.filter.plain_address import plain_address
from ansible_collections.drover.kvm.plugins.filter.portal import portal


def role_variable(path: Path, name: str, **known: object) -> Any:
    """A variable of a file of a role, as data. What it refers to is `known`."""
    return expression(yaml.safe_load(path.read_text(encoding="utf-8"))[name], **known)


def expression(text: str, **known: object) -> Any:
    """What one expression in braces comes to."""
    environment = Environment(undefined=StrictUndefined, autoescape=select_autoescape([], default_for_string=False))
    # Ansible's own `default` knows only Ansible's own undefined values.
    environment.filters.update({**Sets().filters(), **FilterModule().filters(), "default": FILTERS["default"]})
    own = {"network_of": network_of, "plain_address": plain_address, "portal": portal}
    environment.filters.update({f"drover.kvm.{name}": function for name, function in own.items()})
    for name, test in TestModule().tests().items():
        environment.tests.update({name: test, f"ansible.builtin.{name}": test})
    return environment.compile_expression(text.strip().removeprefix("{{").removesuffix("}}"))(**known)
