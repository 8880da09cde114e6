# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery of one VM: ask every node, let the rules decide, do it, and ask again until nothing is left to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import DroverError, Failed, Unreachable
from .._libvirt import LOCAL, Node
from .._peers import ask
from .copies import Action, Decision
from .ends import End
from .rules import decide
from .volumes import remove_originals

LOOK_SECONDS = 10.0
ACT_SECONDS = 45.0
ROUNDS = 8
# How long a node may be silent before the decision is taken without it: a daemon that was killed is back by then.
SILENCE = 15.0
# An abort counts only when libvirt comes back from what it waits for: a connection, or the destination's preparing.
# That takes as long as the kernel tries to connect (131 s on Linux 6.5 and later).
ABORTED = 150.0
VERBS = {"destroy", "undefine", "resume", "set_autostart", "set_home", "clear_marker", "abort_job"}
VERBS |= {"remove_copies", "remove_originals", "release_copies", "forget"}  # files that were copied


class Nodes:
    """All nodes of the cluster. Each question and each action is a child process with a time limit.

    `uris` are the libvirt URIs by node, with that of this machine's own node as a local one.
    """

    def __init__(self, uris: Mapping[str, str], here: str) -> None:
        self.uris = {**uris, here: LOCAL}
        self.here = here

    def look(self, uuid: str) -> dict[str, Any]:
        """What each node says of the VM, in the form that the rules take."""

        def question(node: Node) -> Any:
            return End(node).look(uuid)

        answers = ask(self.uris, question, LOOK_SECONDS, readonly=False)
        return {node: self._said(node, uuid, answer) for node, answer in answers.items()}

    def _said(self, node: str, uuid: str, answer: Any) -> Any:
        if not isinstance(answer, Unreachable):
            return answer
        said: dict[str, Any] = {"state": "unreachable", "why": str(answer)}
        # The processes of this machine can be seen without libvirt.
        return {**said, "qemu_alive": qemu_alive(uuid)} if node == self.here else said

    def act(self, uuid: str, action: Action, expected: Any) -> None:
        """Carry out one action of a decision. Raises Unreachable with the words of the node.

        `expected` is what the node said when it was decided, or None when the state is our own work since. Another
        recovery, elsewhere, may have seen less and resumed what this one is about to stop.
        """
        name = action.node

        def call(node: Node) -> None:
            end = End(node)
            if isinstance(expected, dict) and standing(end.look(uuid)) != standing(expected):
                raise Failed("the VM is not as it was when this was decided")
            paths = action.value if isinstance(action.value, tuple) else ()
            verbs: dict[str, Callable[[], Any]] = {
                "remove_copies": lambda: end.volumes.remove(paths),
                "release_copies": lambda: end.volumes.release(paths),
                "forget": lambda: end.forget(paths),
                "remove_originals": lambda: self.remove_originals(name, end, uuid, paths),
                "destroy": lambda: end.destroy(uuid),
                "undefine": lambda: end.undefine(uuid),
                "resume": lambda: end.resume(uuid),
                "set_autostart": lambda: end.set_autostart(uuid, bool(action.value)),
                "set_home": lambda: end.rehome(uuid, str(action.value)),
                "clear_marker": lambda: end.set_marker(uuid, None),
                "note": lambda: end.note(uuid),
                "abort_job": lambda: end.abort(uuid),
            }
            verbs[action.verb]()

        answer = ask({name: self.uris[name]}, call, ACT_SECONDS, readonly=False)[name]
        if isinstance(answer, Unreachable):
            raise answer

    def remove_originals(self, node: str, end: End, uuid: str, paths: Iterable[str]) -> None:
        """Delete the files of a VM that has left; their mark can be read on their own node only. Raises Failed."""
        if node != self.here:
            raise Failed(f"only a recovery on {node} itself can look at its files: run it there")
        remove_originals(paths, uuid, end.uses)


def qemu_alive(uuid: str, proc: Path = Path("/proc")) -> bool:
    """Whether a process on this machine carries the VM's UUID on its command line as QEMU does."""
    mark = f"-uuid\0{uuid}\0".encode()
    for entry in proc.glob("[0-9]*/cmdline"):
        try:
            if mark in entry.read_bytes():
                return True
        except OSError:
            continue
    return False


@dataclass
class Recovered:
    """What a recovery saw last and did; `complete` is false when a person or a node must act before it can end."""

    said: dict[str, Any]
    decision: Decision
    actions: list[str]
    complete: bool

    def as_dict(self) -> dict[str, Any]:
        """As data for the helper's result."""
        decision = {"rule": self.decision.rule, "where": self.decision.where, "text": self.decision.text}
        return {"said": self.said, "actions": self.actions, "complete": self.complete, **decision}


@dataclass(frozen=True)
class Limits:
    """How long to wait for a job that moves (`patience`), for one that does not (`stall`), and for the end of one that
    was aborted (`aborted`); in seconds.
    """

    patience: float = 60
    stall: float = 60
    silence: float = SILENCE
    aborted: float = ABORTED
    pause: float = 1.0


class Recovery:
    """Decides and acts until the rules ask for nothing more. Idempotent; to be run under the VM's lock."""

    def __init__(
        self,
        uuid: str,
        nodes: Nodes,
        note: Callable[[str], None],
        limits: Limits,
        keep: str | None = None,
        fenced: Sequence[str] = (),
    ) -> None:
        self.uuid, self.nodes, self.note, self.keep, self.fenced = uuid, nodes, note, keep, fenced
        self.limits = limits
        self.done: list[str] = []
        self.aborted: float | None = None

    def run(self) -> Recovered:
        """Recover, waiting for a job that goes on as long as it moves and `patience` seconds in all."""
        rounds = 0
        start = moved = time.monotonic()
        sent: Any = None
        while True:
            said = self.nodes.look(self.uuid)
            now = time.monotonic()
            if (seen := progress(said)) != sent:
                sent, moved = seen, now
            decision = self.settled(said, stalled=now - moved > self.limits.stall)
            # At once: a source that loses its power while this one waits must not be taken for one that never ran on.
            self.apply([action for action in decision.actions if action.verb == "note"], said)
            verbs = {action.verb for action in decision.actions}
            if self.ending(verbs, now) or now - start < self.patience(said, verbs):
                time.sleep(self.limits.pause)
            elif not verbs & VERBS or rounds == ROUNDS:
                return Recovered(said, decision, self.done, not verbs & {"wait", *VERBS} and not_marked(said))
            else:
                rounds += 1
                self.apply([action for action in decision.actions if action.verb in VERBS], said)

    def ending(self, verbs: set[str], now: float) -> bool:
        """Whether the job that is to be aborted was, and may still take a while to end."""
        return "abort_job" in verbs and self.aborted is not None and now - self.aborted < self.limits.aborted

    def patience(self, said: Mapping[str, Any], verbs: set[str]) -> float:
        """How many seconds to wait for things to change by themselves before the decision counts."""
        if "wait" in verbs:
            return self.limits.patience
        return self.limits.silence if silent(said) and markers(said) and not verbs & VERBS else 0

    def settled(self, said: Mapping[str, Any], stalled: bool) -> Decision:
        """The decision, but only if a second look says the same: a migration that just ends passes such states."""
        decision = decide(said, self.fenced, self.keep, stalled)
        if any(action.verb in VERBS for action in decision.actions):
            time.sleep(self.limits.pause)
            again = decide(self.nodes.look(self.uuid), self.fenced, self.keep, stalled)
            if again != decision:
                return Decision(again.rule, again.where, again.text, (Action("", "wait", "look again"),))
        return decision

    def apply(self, actions: list[Action], said: Mapping[str, Any]) -> None:
        """Do the actions in their order; the first that fails ends the round, and the next look decides anew."""
        touched: set[str] = set()
        for action in actions:
            self.note(action.text)
            try:
                self.nodes.act(self.uuid, action, None if action.node in touched else said.get(action.node))
            except DroverError as error:
                self.note(f"{action.text}: {error.message}")
                time.sleep(self.limits.pause)
                return
            touched.add(action.node)
            self.done.append(action.text)
            if action.verb == "abort_job":
                self.aborted = time.monotonic()


def standing(said: Any) -> Any:
    """What must not have changed between a decision and what is done by it."""
    return tuple(said.get(key) for key in ("state", "reason", "marker")) if isinstance(said, dict) else said


def markers(said: Mapping[str, Any]) -> list[dict[str, str]]:
    """The markers that the nodes show."""
    return [one["marker"] for one in said.values() if isinstance(one, dict) and one.get("marker")]


def not_marked(said: Mapping[str, Any]) -> bool:
    """Whether no node shows a marker: then there is nothing of ours left to finish."""
    return not markers(said)


def silent(said: Mapping[str, Any]) -> bool:
    """Whether a node gave no answer."""
    return any(isinstance(one, dict) and one.get("state") == "unreachable" for one in said.values())


def progress(said: Mapping[str, Any]) -> list[Any]:
    """How far the job is, to see whether it moves."""
    return [one.get("progress") for one in said.values() if isinstance(one, dict)]
