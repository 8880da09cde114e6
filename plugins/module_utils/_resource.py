# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine: one way for every module to read, plan, apply, wait and read again.

A resource says what is (`read`), what shall be (`wanted`) and which steps lead there (`steps`); it performs nothing
by itself. So check mode can't drift from the real run, and an option that has no effect is caught: after the steps
the resource is read and planned again, and a plan that is not empty is an error.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from traceback import format_exc
from typing import Any, Callable, ClassVar, Optional

from ansible.module_utils.basic import AnsibleModule

from ._errors import DroverError, Failed, Invalid, NotConverged, TimedOut
from ._fields import Field, argument_spec, differences, hidden, normalise, secret_keys, secret_names, tame, texts_below

State = Optional[dict[str, Any]]
# Seconds between two looks: at first, and at most. Many items look at once, and what they wait for needs the node too.
POLL, POLL_MOST = 0.1, 1.0


@dataclass
class Step:
    """One change: words for the user, the call, and the state to wait for.

    `done` returns True, or what it sees instead (shown when `timeout`, in seconds, is over).
    """

    text: str
    call: Callable[[], object]
    done: Callable[[], object] | None = None
    timeout: float = 30

    def run(self) -> None:
        """Perform the change and wait until the system shows it. Raises TimedOut, and what the call raises."""
        self.call()
        if self.done is None:
            return
        end, pause = time.monotonic() + self.timeout, POLL
        while (seen := self.done()) is not True:
            if time.monotonic() > end:
                raise TimedOut(f"{self.text}: not there after {self.timeout:g} s; last seen: {seen}", step=self.text)
            time.sleep(pause)
            pause = min(1.5 * pause, POLL_MOST)


class Resource:
    """Base of all resources. `params` are the normalised options of one item, `client` is what `connect` gave."""

    key: ClassVar[str] = "name"

    def __init__(self, params: dict[str, Any], client: Any) -> None:
        self.params = params
        self.client = client
        self.warnings: list[str] = []

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """The client that all items of one run share, open for as long as the module works."""
        return nullcontext()

    @classmethod
    def review(cls, resources: Sequence[Resource]) -> None:
        """Look at all items together before any is planned (bulk reads, duplicates). May raise Invalid or Refused."""

    @property
    def name(self) -> str:
        """The item's name in messages."""
        return str(self.params[self.key])

    def read(self) -> State:
        """What is; None when it is absent."""
        raise NotImplementedError

    def wanted(self, before: State) -> State:
        """What shall be; options that were not given keep their present value. May raise Invalid or Refused."""
        raise NotImplementedError

    def steps(self, before: State, wanted: State) -> list[Step]:
        """The changes that lead from `before` to `wanted`; an empty list means converged."""
        raise NotImplementedError

    def result(self, state: State) -> dict[str, Any]:
        """What the module returns of the state that was read last (in check mode: of the state that shall be)."""
        return {"resource": state}


@dataclass
class Plan:
    """What will be done with one resource, made before anything is changed."""

    resource: Resource
    before: State
    wanted: State
    steps: list[Step]
    done: list[str] = field(default_factory=list)
    error: DroverError | None = None
    after: State = None

    @classmethod
    def of(cls, resource: Resource) -> Plan:
        """Read, ask what shall be, and list the steps."""
        before = resource.read()
        wanted = resource.wanted(before)
        return cls(resource, before, wanted, resource.steps(before, wanted), after=wanted)

    def apply(self) -> None:
        """Perform the steps and prove that the resource is now as wanted; keeps the error instead of raising it.

        After an error the result holds what is then, not what should have been.
        """
        try:
            for step in self.steps:
                step.run()
                self.done.append(step.text)
            if not self.steps:
                self.after = self.before
                return
            self.after = self.resource.read()
            left = self.resource.steps(self.after, self.resource.wanted(self.after))
            if left:
                texts = [step.text for step in left]
                raise NotConverged(
                    f"{self.resource.name} did not converge: after all steps there is still to do: {'; '.join(texts)}",
                    left=texts,
                )
        except Exception as error:
            # A fault of ours in one item must not hide what was done with the others.
            name = f"{self.resource.name}: {type(error).__name__}: {error}"
            self.error = error if isinstance(error, DroverError) else Failed(name, trace=format_exc())
            self.after = None
            with suppress(DroverError):
                self.after = self.resource.read()

    def outcome(self, secrets: set[str]) -> dict[str, Any]:
        """The result of one item; equal in check mode and in the real run."""
        before, after = differences(self.before, self.wanted if self.steps else self.before)
        outcome: dict[str, Any] = {
            "changed": bool(self.steps) if self.error is None else bool(self.done),
            "actions": [step.text for step in self.steps] if self.error is None else self.done,
            "diff": {
                "before": hidden(before, secrets),
                "after": hidden(after, secrets),
                "before_header": self.resource.name,
                "after_header": self.resource.name,
            },
            **hidden(self.resource.result(self.after), secrets),
        }
        if self.error is not None:
            outcome.update(_failure(self.error))
        return outcome


def _failure(error: DroverError) -> dict[str, Any]:
    return {"failed": True, "msg": error.message, "error": type(error).__name__, "details": error.details}


class _Module(AnsibleModule):
    """A module that says what is wrong where Ansible itself breaks off with a traceback."""

    def _load_params(self) -> None:
        super()._load_params()
        self.params: dict[str, Any] = tame(self.params, self.argument_spec)


class _Discreet(_Module):
    """A module with secrets among its options: it does not write them to the system's log.

    Ansible blots secrets out there, but one of several lines, in a list or a dictionary, has its line ends escaped
    there, and so it is not found. And it knows only those that are where they belong: one in a list of lists, or in a
    dictionary in the place of a list, would be in the very error that says so.
    """

    def _load_params(self) -> None:
        super()._load_params()
        self.no_log_values.update(texts_below(self.params, secret_keys(self.argument_spec)))

    def _log_invocation(self) -> None:
        self.log("Invoked; its options may hold secrets")


def run_module(
    resource_class: type[Resource],
    fields: Sequence[Field],
    items: str | None = None,
    parallel: int = 4,
    **rules: Any,
) -> None:
    """The whole of a module's main.

    `items` names the list option for many things at once; its items inherit the other options. `parallel` is how
    many items are worked on at the same time. `rules` go to AnsibleModule (required_if and the like).
    """
    spec = argument_spec(fields, defaults=items is None)
    if items is not None:
        options = argument_spec(fields, defaults=False)
        spec[items] = {"type": "list", "elements": "dict", "options": options}
    secrets = secret_names(fields)
    module = (_Discreet if secrets else _Module)(argument_spec=spec, supports_check_mode=True, **rules)
    try:
        wanted = _item_params(module.params, fields, items)
        with resource_class.connect(wanted[0] if wanted else _of_none(module.params, fields)) as client:
            plans = _plans([resource_class(params, client) for params in wanted], resource_class)
            if not module.check_mode:
                with ThreadPoolExecutor(max_workers=parallel) as pool:
                    list(pool.map(Plan.apply, plans))
            outcomes = [plan.outcome(secrets) for plan in plans]
    except DroverError as error:
        module.fail_json(**{"changed": False, **_failure(error)})
    for plan in plans:
        for warning in plan.resource.warnings:
            module.warn(warning)
    _finish(module, plans, outcomes, bulk=items is not None and module.params[items] is not None)


def _item_params(params: Mapping[str, Any], fields: Sequence[Field], items: str | None) -> list[dict[str, Any]]:
    if items is None or params[items] is None:
        return [normalise(fields, params)]
    top = {option.name: params[option.name] for option in fields}
    result = []
    for number, item in enumerate(params[items]):
        given = {name: value for name, value in item.items() if value is not None}
        result.append(normalise(fields, {**top, **given}, f"{items}[{number}]."))
    return result


def _of_none(params: Mapping[str, Any], fields: Sequence[Field]) -> dict[str, Any]:
    """What the items of an empty list would inherit. It is looked at all the same, so that nonsense is refused."""
    return normalise([replace(field, required=False) for field in fields], params)


def _plans(resources: list[Resource], resource_class: type[Resource]) -> list[Plan]:
    """The plans of all items; raises before anything was changed when one of them is invalid or refused."""
    counted = Counter(resource.name for resource in resources)
    twice = sorted(name for name, count in counted.items() if count > 1)
    if twice:
        raise Invalid(f"listed twice: {', '.join(twice)}; name each item once")
    resource_class.review(resources)
    plans, errors = [], []
    for resource in resources:
        try:
            plans.append(Plan.of(resource))
        except DroverError as error:
            errors.append((resource.name, error))
    if errors and len(resources) == 1:
        raise errors[0][1]
    if errors:
        raise type(errors[0][1])(
            "; ".join(_named(name, error) for name, error in errors),
            items={name: error.details for name, error in errors},
        )
    return plans


def _named(name: str, error: DroverError) -> str:
    """The message with the name of its item before it, unless it begins with that."""
    first = error.message.split(maxsplit=1)[:1]
    return error.message if first in ([name], [f"{name}:"]) else f"{name}: {error.message}"


def _finish(module: AnsibleModule, plans: list[Plan], outcomes: list[dict[str, Any]], bulk: bool) -> None:
    if not bulk:
        outcome = outcomes[0]
        (module.fail_json if outcome.get("failed") else module.exit_json)(**outcome)
    result: dict[str, Any] = {
        "changed": any(outcome["changed"] for outcome in outcomes),
        "actions": [f"{plan.resource.name}: {text}" for plan, o in zip(plans, outcomes) for text in o["actions"]],
        "diff": [outcome.pop("diff") for outcome in outcomes],
        "results": [{"name": plan.resource.name, **outcome} for plan, outcome in zip(plans, outcomes)],
    }
    result["diff"] = [diff for diff in result["diff"] if diff["before"] != diff["after"]]
    failed = [_named(plan.resource.name, plan.error) for plan in plans if plan.error is not None]
    if failed:
        done = [plan.resource.name for plan in plans if plan.error is None]
        module.fail_json(msg="; ".join(failed), completed=done, **result)
    module.exit_json(**result)


def run_info(
    function: Callable[[dict[str, Any], Any], dict[str, Any]],
    fields: Sequence[Field],
    connect: Callable[[Mapping[str, Any]], AbstractContextManager[Any]],
    **rules: Any,
) -> None:
    """The main of a module that only reads: `function` gets the normalised options and the client, returns facts."""
    module = _Module(argument_spec=argument_spec(fields), supports_check_mode=True, **rules)
    try:
        params = normalise(fields, module.params)
        with connect(params) as client:
            facts = function(params, client)
    except DroverError as error:
        module.fail_json(**{"changed": False, **_failure(error)})
    module.exit_json(changed=False, **facts)
