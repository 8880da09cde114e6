# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which volume a logical unit is, asked by the way on which QEMU reaches it: libiscsi, which its own driver uses.

The kernel of the node sees nothing of it. The secret goes to the library in memory; no process has it as an argument.
See https://github.com/sahlberg/libiscsi/blob/master/include/iscsi.h, and SPC-4, 7.8.5, for the page.
"""

from __future__ import annotations

import ctypes
from ctypes.util import find_library
from functools import partial
from typing import Any, NamedTuple

from ._errors import DroverError, Failed, NotFound, Unreachable
from ._run import bounded

SECONDS = 20.0
NORMAL_SESSION, DIGEST_IF_ASKED = 2, 1
IDENTIFICATION = 0x83
PAGE_BYTES = 1024
# How udev begins a name of that kind: IEEE's NAA, EUI-64.
KINDS = {3: "3", 2: "2"}


class Login(NamedTuple):
    """How to reach a unit: `user` and `password` are of CHAP, None without."""

    portal: str
    target: str
    lun: int
    initiator: str
    user: str | None = None
    password: str | None = None


def wwids(login: Login, seconds: float = SECONDS) -> list[str]:
    """The WWIDs of a logical unit as udev says them (3600140...); none when it has no name of its own in the world.

    Logs in, asks and logs out, in a child process. Raises NotFound without the library, Unreachable with its words.
    """
    name = find_library("iscsi")
    if name is None:
        raise NotFound("libiscsi is not installed here; it comes with QEMU's driver for iSCSI (qemu-block-extra)")
    answer = bounded({login.portal: partial(_ask, name, login)}, seconds)[login.portal]
    if isinstance(answer, DroverError):
        raise Unreachable(answer.message, portal=login.portal)
    return parse_page(bytes.fromhex(answer))


def parse_page(page: bytes) -> list[str]:
    """The WWIDs of the unit itself, not of its port, in the page of device identification (VPD 0x83)."""
    found, rest = [], page[4 : 4 + int.from_bytes(page[2:4], "big")]
    while len(rest) >= 4:
        of_unit, kind, name = rest[1] & 0x30 == 0, KINDS.get(rest[1] & 0x0F), rest[4 : 4 + rest[3]]
        if of_unit and kind and len(name) == rest[3]:
            found.append(kind + name.hex())
        rest = rest[4 + rest[3] :]
    return found


def _ask(name: str, login: Login) -> str:
    """The page, in hexadecimal digits. Raises Failed."""
    library = ctypes.CDLL(name)
    for function in ("iscsi_create_context", "scsi_cdb_inquiry", "iscsi_scsi_command_sync"):
        getattr(library, function).restype = ctypes.c_void_p
    library.iscsi_get_error.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.iscsi_create_context(login.initiator.encode()))
    library.iscsi_set_targetname(context, login.target.encode())
    library.iscsi_set_session_type(context, NORMAL_SESSION)
    library.iscsi_set_header_digest(context, DIGEST_IF_ASKED)
    library.iscsi_set_noautoreconnect(context, 1)
    if login.user:
        library.iscsi_set_initiator_username_pwd(context, login.user.encode(), (login.password or "").encode())
    if library.iscsi_full_connect_sync(context, login.portal.encode(), login.lun) != 0:
        raise Failed(_words(library, context))
    page = ctypes.create_string_buffer(PAGE_BYTES)
    task = ctypes.c_void_p(library.scsi_cdb_inquiry(1, IDENTIFICATION, PAGE_BYTES))
    library.scsi_task_add_data_in_buffer(task, PAGE_BYTES, page)
    done = library.iscsi_scsi_command_sync(context, login.lun, task, None)
    if not done or library.scsi_task_get_status(task, None) != 0:
        raise Failed(f"it does not say which volume it is: {_words(library, context)}")
    library.iscsi_logout_sync(context)
    return page.raw.hex()


def _words(library: Any, context: ctypes.c_void_p) -> str:
    return str((library.iscsi_get_error(context) or b"").decode("utf-8", "replace").strip())
