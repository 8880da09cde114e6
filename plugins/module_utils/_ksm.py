# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client of the kernel's samepage merging: its settings now and at boot, what is merged, and who else sets it.

https://docs.kernel.org/admin-guide/mm/ksm.html.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._errors import Failed
from ._files import replace_file, told
from ._run import run

FOLDER = Path("/sys/kernel/mm/ksm")
AT_BOOT = Path("/etc/tmpfiles.d/drover-ksm.conf")
HEAD = "# Written by module drover.kvm.ksm, see tmpfiles.d(5): what the kernel is told at each boot.\n"
# As the kernel has them at boot (mm/ksm.c), in the order in which they can be written: with an adviser it takes no
# number of pages. What its configuration or release lacks has no file.
DEFAULTS: dict[str, Any] = {
    "advisor_mode": "none",
    "pages_to_scan": 100,
    "sleep_millisecs": 20,
    "merge_across_nodes": True,
    "max_page_sharing": 256,
    "use_zero_pages": False,
    "smart_scan": True,
    "run": 0,
}
# The kernel changes these only while nothing is merged.
UNMERGED = ("merge_across_nodes", "max_page_sharing")
# They write the same files: of package ksmtuned in Debian and Enterprise Linux, and of QEMU in Ubuntu.
RIVALS = ("ksm.service", "ksmtuned.service", "qemu-kvm.service")
SHOW = ("systemctl", "show", "--property=Id,ActiveState,UnitFileState", "--")


def settings() -> dict[str, Any]:
    """What the kernel goes by now, in the order in which it can be written; empty where it knows no KSM."""
    texts = {name: told(FOLDER / name) for name in DEFAULTS}
    return {name: _value(DEFAULTS[name], text) for name, text in texts.items() if text}


def _value(default: Any, text: str) -> Any:
    if isinstance(default, str):
        # The kernel shows all words, with the one that holds in brackets.
        return (re.search(r"\[(.*?)\]", text) or [text, text])[1]
    return type(default)(int(text))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(int(value))


def put(name: str, value: Any) -> None:
    """Tell the kernel. It answers the 2 of `run` once all is unmerged. Raises Failed."""
    try:
        (FOLDER / name).write_text(_text(value), encoding="ascii")
    except OSError as error:
        raise Failed(f"the kernel does not take {_text(value)} for {FOLDER / name}: {error.strerror}") from None


def lines(values: Mapping[str, Any]) -> list[str]:
    """The lines of tmpfiles.d(5) that set them; `run` comes last."""
    return [f"w {FOLDER / name} - - - - {_text(values[name])}" for name in DEFAULTS if name in values]


def at_boot() -> list[str] | None:
    """The lines of our file, or None where there is none. Raises Failed when it can't be read."""
    try:
        text = AT_BOOT.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Failed(f"{AT_BOOT} can't be read ({error}); mend or remove it") from None
    return text.removeprefix(HEAD).splitlines()


def put_at_boot(wanted: list[str] | None) -> None:
    """Write the file, or remove it. Raises Failed."""
    if wanted is None:
        with suppress(FileNotFoundError):
            AT_BOOT.unlink()
        return
    AT_BOOT.parent.mkdir(mode=0o755, exist_ok=True)
    replace_file(AT_BOOT, (HEAD + "".join(f"{line}\n" for line in wanted)).encode(), mode=0o644)


def merged() -> int | None:
    """Bytes that would be in use without KSM, and are not; None where the kernel knows no KSM."""
    counts = [told(FOLDER / name) for name in ("pages_sharing", "ksm_zero_pages")]
    return sum(int(count or 0) for count in counts) * os.sysconf("SC_PAGE_SIZE") if counts[0] else None


def settled() -> bool:
    """Whether the kernel takes what is UNMERGED: it holds no page for others, even where these have ended."""
    return not int(told(FOLDER / "pages_shared") or 0)


def rivals() -> list[str]:
    """The units that set KSM here too, running or to be started at boot. Raises Failed and TimedOut."""
    blocks = run([*SHOW, *RIVALS], timeout=30).strip().split("\n\n")
    units = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    busy = ("active", "activating", "reloading")
    return [unit["Id"] for unit in units if unit["ActiveState"] in busy or unit["UnitFileState"].startswith("enabled")]


def container() -> str | None:
    """What kind of container this is, None where it is none. Raises Failed and TimedOut."""
    kind = run(["systemd-detect-virt", "--container"], timeout=30, ok=(0, 1)).strip()
    return None if kind == "none" else kind
