# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the nodes say of one VM after a migration that was not finished, and what a recovery decides. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Union

# What one node says: "absent", "unreachable", or a dict as in read().
Said = Union[str, Mapping[str, Any]]

UNREACHABLE = "unreachable"  # gave no answer: the VM may run there
GONE = "gone"  # gave no answer, but it is proven that no QEMU of the VM runs there
ABSENT = "absent"
OFF = "off"
RUNS = "runs"
MIGRATING = "paused by a migration"
USER = "paused by its user"
STUCK = "paused or stopped for another reason"
POSTCOPY = "in post-copy"
DOUBTFUL = "in contradiction"  # libvirt and the list of processes disagree

ACTIVE = (RUNS, MIGRATING, USER, STUCK, POSTCOPY, DOUBTFUL)
STATES = {"running": RUNS, "blocked": RUNS, "shutoff": OFF, "shut off": OFF, "absent": ABSENT}
# Why a VM is off that was not stopped from outside.
ENDED = ("shutdown", "saved", "from snapshot")
PAUSED_BY_A_MIGRATION = ("migrating", "migration")
YES = (True, 1, "1", "true", "yes", "on")


@dataclass(frozen=True)
class Marker:
    """The mark that our migration leaves in the domain, on both ends, until it is finished.

    `ran` is what a recovery adds at the source: the VM ran on there when the migration had failed. `home` is the node
    that shall be the VM's home once it is there, where that changes.
    """

    id: str
    source: str
    target: str
    was: str
    autostart: bool
    copies: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    ran: bool = False
    home: str = ""


@dataclass(frozen=True)
class Copy:
    """What one node holds of the VM."""

    node: str
    kind: str
    reason: str = ""
    job: str = ""
    persistent: bool | None = None
    marker: Marker | None = None
    generation: int | None = None
    process: bool = False

    @property
    def active(self) -> bool:
        """Whether there is, or may be, a QEMU process of a domain that libvirt shows."""
        return self.kind in ACTIVE

    @property
    def ran_on(self) -> bool:
        """Of a source that is off: whether it ran after its migration, so that the copy on the target is an old one.

        QEMU of a source that was left paused ends because libvirt or somebody ends it, not by its guest or a save.
        """
        return self.kind == OFF and (self.reason in ENDED or bool(self.marker and self.marker.ran))

    @property
    def hidden(self) -> bool:
        """Whether a QEMU process of the VM was seen on a node whose libvirt gives no answer."""
        return self.kind == UNREACHABLE and self.process


@dataclass(frozen=True)
class Action:
    """One thing to do, in the order of the list; `node` is empty for a report about the whole."""

    node: str
    verb: str
    text: str
    value: bool | str | tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As data for a result."""
        data: dict[str, Any] = {"node": self.node, "verb": self.verb, "text": self.text}
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return data if value is None else {**data, "value": value}


@dataclass(frozen=True)
class Decision:
    """The rule that fits, where the VM is (a node, `none` or `unknown`), and what to do."""

    rule: str
    where: str
    text: str
    actions: tuple[Action, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As data for a result."""
        actions = [action.as_dict() for action in self.actions]
        return {"rule": self.rule, "where": self.where, "text": self.text, "actions": actions}


def read(nodes: Mapping[str, Said], fenced: Collection[str] = ()) -> dict[str, Copy]:
    """The copies by node, in the order of their names.

    A dict holds `state` (as libvirt names it, or absent or unreachable), `reason`, `job` (null, a type, or a dict
    with `type`), `persistent`, `marker`, `generation` and `qemu_alive` (whether a QEMU process with the VM's UUID
    runs there; when it is left out, libvirt's word is taken). `fenced` are nodes that are proven to be off.
    """
    found = {}
    for node in sorted(nodes):
        said = nodes[node]
        found[node] = _copy(node, {"state": said} if isinstance(said, str) else said, node in fenced)
    return found


def _copy(node: str, said: Mapping[str, Any], fenced: bool) -> Copy:
    job = said.get("job")
    return Copy(
        node,
        _kind(said, fenced),
        str(said.get("reason") or ""),
        str(job.get("type") or "other") if isinstance(job, Mapping) else str(job or ""),
        said.get("persistent"),
        _marker(said.get("marker")),
        said.get("generation"),
        said.get("qemu_alive") is True,
    )


def _kind(said: Mapping[str, Any], fenced: bool) -> str:
    state, reason, alive = str(said["state"]), str(said.get("reason") or ""), said.get("qemu_alive")
    if state == "unreachable":
        # A node may be up with its libvirtd dead: then the list of processes is the proof.
        return GONE if alive is False or (fenced and alive is None) else UNREACHABLE
    kind = STATES.get(state, STUCK)
    if "postcopy" in reason or "post-copy" in reason:
        kind = POSTCOPY
    elif state == "paused" and reason in PAUSED_BY_A_MIGRATION:
        kind = MIGRATING
    elif state == "paused" and reason == "user":
        kind = USER
    return DOUBTFUL if alive is not None and alive != (kind in ACTIVE) else kind


def _marker(said: Mapping[str, Any] | None) -> Marker | None:
    if not said:
        return None
    autostart = str(said.get("autostart")).lower() in [str(word).lower() for word in YES]
    names = (str(said["id"]), str(said["from"]), str(said["to"]), str(said.get("was") or ""))
    paths = (tuple(said.get("copies") or ()), tuple(said.get("state") or ()))
    return Marker(*names, autostart, *paths, ran=bool(said.get("ran")), home=str(said.get("home") or ""))


def report(rule: str, copies: Mapping[str, Copy], text: str, where: str = "unknown") -> Decision:
    """Nothing can be done safely: say what was seen. The VM's place is named only if there can be no other."""
    seen = "; ".join(f"{copy.node}: {_words(copy)}" for copy in copies.values())
    said = f"{text}. Seen: {seen}"
    return Decision(rule, where, said, (Action("", "report", said),))


def _words(copy: Copy) -> str:
    words = copy.kind + (f" ({copy.reason})" if copy.reason else "")
    marker = f", marker of {copy.marker.source} to {copy.marker.target}" if copy.marker else ""
    return words + (f", job {copy.job}" if copy.job else "") + marker


def drop(copy: Copy, kept: Copy | None) -> list[Action]:
    """Destroy what is active of a copy and undefine it; its definition stays if the kept copy has none of its own."""
    actions = []
    if copy.active:
        actions.append(Action(copy.node, "destroy", f"stop the copy on {copy.node}, which is not the VM"))
    if copy.kind == ABSENT or copy.persistent is False:
        return actions
    if kept is not None and kept.persistent is False:
        text = f"the VM is transient on {kept.node}: define it there, then undefine it on {copy.node}"
        return [*actions, Action(copy.node, "report", text)]
    return [*actions, Action(copy.node, "undefine", f"remove the definition from {copy.node}")]
