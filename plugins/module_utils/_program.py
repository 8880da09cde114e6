# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program made of modules of ours, that goes on when the task that wrote it has ended."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from . import _files

DIRECTORY = Path("/run/drover")
Parts = Mapping[str, Mapping[str, ModuleType]]


def archive(package: str, parts: Parts, start: str) -> bytes:
    """A zip file that Python runs: the sources of the parts (folder -> name -> module); it calls the start's main."""
    main = f"import sys\n\nfrom {package}.{start} import main\n\nmain(sys.argv)\n"
    files = {"__main__.py": main}
    for folder, modules in parts.items():
        files[f"{package}/{folder}__init__.py"] = ""
        files.update({f"{package}/{folder}{name}.py": _source(module) for name, module in modules.items()})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in sorted(files):
            # A fixed date: equal sources give an equal file, whose name is its digest.
            target.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name])
    return buffer.getvalue()


def _source(module: ModuleType) -> str:
    """The module's source, out of Ansible's zip file too; OSError when its loader has none.

    Not inspect.getsource: it reads a zip file by way of a cache that one thread empties while another reads.
    """
    source: str | None = module.__dict__["__loader__"].get_source(module.__name__)
    if source is None:
        raise OSError(f"no source of {module.__name__}")
    return source


def install(name: str, data: bytes, directory: Path) -> Path:
    """Write the program where only root can read and change it; its name holds its digest."""
    path = directory / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.pyz"
    if not path.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _files.replace_file(path, data)
    return path
