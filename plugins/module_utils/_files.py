# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that others read while we write them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ._errors import Failed


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write the file as a whole: a reader, or a crash, sees the old one or the new one, never half of it.

    Several writers don't disturb each other. The file can be read by root only until it is complete. Raises Failed.
    """
    try:
        descriptor, new = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(new, mode)
            os.replace(new, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
    except OSError as error:
        raise Failed(f"{path} could not be written: {error.strerror}", path=str(path)) from None
