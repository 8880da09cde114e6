# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper: a program of its own that moves one VM, or recovers it, as a transient unit on one node.

It runs from a zip file with `python3 FILE.pyz ORDER`; the unit's name is the VM's lock on the node. When something is
not as it should be, it starts `python3 FILE.pyz ORDER recover WORDS` and does nothing more itself: that process has
no connection and no thread that hangs in a call to a frozen peer, and it works under the same unit and its lock.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._errors import DroverError, Refused
from .._libvirt import LOCAL, connect
from .._run import run
from .ends import End
from .live import LiveMove
from .offline import move_definition
from .order import Journal, Order, forget_others, load
from .recovery import Limits, Nodes, Recovery

Leave = Callable[[str], None]
RECOVERY_SECONDS = 300.0


def main(argv: Sequence[str]) -> None:
    """Carry out the order in the file `argv[1]`. Never returns: no at-exit handler may talk to a frozen peer."""
    status = 1
    path = Path(argv[1])
    try:
        order = load(path)
        forget_others(path, order)
        journal = Journal(order)
        if order.kind == "recover" or argv[2:3] == ["recover"]:
            recover(order, journal, argv[3] if len(argv) > 3 else "")
        else:
            move(order, journal, lambda words: start_recovery(argv, order, words))
        path.unlink(missing_ok=True)
        status = 0
    except Exception:
        # Nothing after this would show it.
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os._exit(status)


def start_recovery(argv: Sequence[str], order: Order, words: str) -> None:
    """Recover in a process of its own, and tell the journal what it told."""
    command = [sys.executable, "-B", argv[0], argv[1], "recover", words]
    sys.stdout.write(run(command, timeout=order.timeout + RECOVERY_SECONDS, ok=(0, 1)))


def move(order: Order, journal: Journal, leave: Leave) -> None:
    """Move the VM; `leave` is called with the words of what went wrong, to recover."""
    journal.phase("connecting")
    try:
        with connect(LOCAL, name=order.source) as source, connect(order.uri, name=order.target) as target:
            measured = carry_out(order, End(source), End(target), journal)
    except Refused as error:
        # Nothing was changed: there is nothing to recover.
        journal.finish(ok=False, where=order.source, error=error.message, complete=True, actions=[])
    except DroverError as error:
        journal.phase("recovering", error=error.message)
        leave(error.message)
    else:
        journal.finish(ok=True, where=order.target, error="", complete=True, actions=[], **measured)


def carry_out(order: Order, source: End, target: End, journal: Journal) -> dict[str, Any]:
    """The move itself."""
    if order.kind == "offline":
        return move_definition(order, source, target, journal)
    return LiveMove(order, source, target, journal).run()


def recover(order: Order, journal: Journal, error: str) -> None:
    """Recover the VM and say where it is now."""
    nodes = Nodes(order.nodes, order.here)

    def note(text: str) -> None:
        journal.phase("recovering", action=text)

    limits = Limits(patience=order.timeout, stall=order.stall_timeout)
    found = Recovery(order.uuid, nodes, note, limits, order.keep, order.fenced).run().as_dict()
    where = found["where"]
    ok = found["complete"] and (order.kind == "recover" or where == order.target)
    journal.finish(ok=ok, error=error, **found)
