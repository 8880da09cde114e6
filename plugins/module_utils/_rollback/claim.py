# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that a timer starts when nobody confirmed a change: who decides, and what is tried how long.

No Ansible here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from .._errors import DroverError

Saved = dict[str, Any]


def persist(patience: float, restore: Callable[[], bool]) -> bool:
    """What `restore` says; it is tried again and again for so many seconds. Raises what failed last."""
    end = time.monotonic() + patience
    while True:
        try:
            return restore()
        except DroverError:
            # The machine is cut off, and nobody else comes to help.
            if time.monotonic() > end:
                raise
            time.sleep(1)


def take_back(argv: Sequence[str], restore: Callable[[Saved], bool], words: Callable[[Saved, bool], str]) -> None:
    """Restore from the file `argv[1]`, trying for `argv[2]` seconds, unless the change was confirmed: no file then.

    `restore` says whether all is taken over, `words` what to print then.
    """
    path, patience = Path(argv[1]), float(argv[2]) if len(argv) > 2 else 0
    claimed = path.with_suffix(".restoring")
    try:
        # Whoever renames the file first, this program or the confirmation, has decided.
        path.rename(claimed)
        saved = json.loads(claimed.read_text(encoding="utf-8"))
        done = persist(patience, lambda: restore(saved))
    except FileNotFoundError:
        raise SystemExit(f"{path} is gone: the change was confirmed, or taken back already") from None
    except DroverError as error:
        raise SystemExit(f"{error.message}; run it again with {claimed}") from None
    claimed.unlink()
    sys.stdout.write(words(saved, done) + "\n")
