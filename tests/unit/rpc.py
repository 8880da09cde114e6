# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How often the library of libvirt would ask a daemon."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from typing import Any, Callable

import pytest

# What libvirt-python answers from its own memory; it frees its memory at any time (virDomainFree and so on).
LOCAL = {"virDomainGetName", "virDomainGetUUIDString", "virDomainGetID"}


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each function of the C library is called from now on that would be a call to the daemon."""
    module = sys.modules["libvirtmod"]
    calls: Counter[str] = Counter()
    lock = threading.Lock()

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with lock:
                calls[name] += 1
            return function(*args)

        return call

    asking = {name for name in dir(module) if name.startswith("vir") and not name.endswith("Free")} - LOCAL
    for name in asking:
        monkeypatch.setattr(module, name, wrapped(name, getattr(module, name)))
    return calls
