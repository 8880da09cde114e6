# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random and hostile input against the options of every module, and against the variables of a VM's inventory host.

What the modules then do with input that is let through is fuzzed in their own tests, each beside its fake.
"""

from __future__ import annotations

import json
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.drover.kvm.plugins import modules
from ansible_collections.drover.kvm.plugins.module_utils._domain.inventory import STORAGE, iscsi_volumes, vm_sheet
from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError, Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, argument_spec, normalise, tame
from ansible_collections.drover.kvm.plugins.modules import vm
from ansible_collections.drover.kvm.tests.unit import hostile

NAMES = sorted(path.stem for path in Path(modules.__path__[0]).glob("[a-z]*.py"))
FIELDS = {name: vars(import_module(f"{modules.__name__}.{name}")).get("FIELDS", ()) for name in NAMES}
VARIABLES = (*(Field(f"vm_{field.name}", field.type, field.elements, fields=field.fields) for field in vm.FIELDS),)
VARIABLES += tuple(Field(f"vm_{name}") for name in (*STORAGE, "profile"))


def normalised(fields, args):
    """As the engine does it; None when Ansible itself refuses."""
    spec = argument_spec(fields)
    found = ArgumentSpecValidator(spec).validate(tame(args, spec))
    return None if found.error_messages else normalise(fields, found.validated_parameters)


def check_types(fields, taken):
    """What is taken is of the types that the module counts on."""
    for field in fields:
        value = taken.get(field.name)
        values = value if field.type == "list" else [value]
        for one in values or []:
            if field.fields and one is not None:
                check_types(field.fields, one)
            elif "int" in (field.type, field.elements) and one is not None:
                assert isinstance(one, int) and not isinstance(one, bool), (field.name, one)


@pytest.mark.parametrize("name", [name for name in NAMES if FIELDS[name]])
def test_options_are_taken_or_refused_with_a_reason(name):
    fields = FIELDS[name]

    @hostile.fuzz(fields, quick=25)
    def check(args):
        with suppress(Invalid):
            taken = normalised(fields, args)
            json.dumps(taken)
            check_types(fields, taken or dict.fromkeys(field.name for field in fields))

    check()


@hostile.fuzz(VARIABLES, {}, {"vm_profile": "standard", "vm_iscsi_portal": "10.0.0.1:3260"}, quick=80)
def test_variables_of_a_vm_are_taken_or_refused_with_a_reason(args):
    args.pop("vm_name", None)
    with suppress(DroverError):
        sheet = vm_sheet({"inventory_hostname": "web1", **args})
        iscsi_volumes([sheet], {"web1": args})
