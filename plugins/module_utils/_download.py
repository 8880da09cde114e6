# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file from a URL or a path of this machine, hashed as it comes, and the checksum that it must have."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from ansible.module_utils import urls

from ._checksum import ALGORITHMS, CHUNK, is_digest
from ._errors import Failed, Invalid, Unreachable

LONGEST_LIST = 2**24
# `HEX  NAME`, `HEX *NAME` of coreutils, or `SHA256 (NAME) = HEX` of BSD, which Fedora uses too.
LINES = (
    re.compile(r"\\?(?P<hex>[0-9a-fA-F]+)[ \t]+\*?(?P<name>\S.*)"),
    re.compile(r"(?P<kind>SHA\d+) \((?P<name>.+)\) = (?P<hex>[0-9a-fA-F]+)"),
)


def check_source(value: str) -> str:
    """A URL (http, https, file), or an absolute path of this machine."""
    parts = urlsplit(value)
    if value.startswith("/") or (parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc):
        return value
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or not value.isprintable():
        raise ValueError(
            f"{urlsplit(value)._replace(netloc='...').geturl()!r} is no source: write an absolute path, or a URL that "
            "begins with https://, http:// or file:///, without a password"
        )
    return value


def check_checksum(value: str) -> str:
    """`ALGORITHM:HEX`, or `ALGORITHM:URL` of a list of checksums."""
    algorithm, _colon, rest = value.partition(":")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"{value!r} is no checksum; write sha256:HEX or sha512:HEX, or a list's URL as HEX")
    if "/" in rest:
        return f"{algorithm}:{check_source(rest)}"
    if not is_digest(algorithm, rest.lower()):
        raise ValueError(f"{rest!r} is no {algorithm}; it has {ALGORITHMS[algorithm]} hexadecimal digits")
    return f"{algorithm}:{rest.lower()}"


def expected(checksum: str, source: str, timeout: float) -> str:
    """The checksum as ALGORITHM:HEX; where it is a list, the line of the source's name is looked up.

    Raises Invalid where there is none or more than one, Unreachable and Failed.
    """
    algorithm, _colon, rest = checksum.partition(":")
    if "/" not in rest:
        return checksum
    with _opened(rest, timeout) as stream:
        text = stream.read(LONGEST_LIST).decode("utf-8", "replace")
    name = posixpath.basename(unquote(urlsplit(source).path))
    found = set()
    for line in text.splitlines():
        match = next((hit for form in LINES if (hit := form.fullmatch(line.strip()))), None)
        words = match.groupdict() if match else {}
        if words and posixpath.basename(words["name"]) == name and words.get("kind", algorithm).lower() == algorithm:
            found.add(words["hex"].lower())
    fits = sorted(one for one in found if len(one) == ALGORITHMS[algorithm])
    if len(fits) != 1:
        raise Invalid(f"{rest} has {'no' if not fits else 'more than one'} {algorithm} of {name}", option="checksum")
    return f"{algorithm}:{fits[0]}"


def fetch(source: str, target: IO[bytes], algorithm: str, timeout: float) -> str:
    """Write the source into an empty file, holes as holes; returns its checksum, ALGORITHM:HEX.

    `timeout` is for the connection and each answer, in seconds. Raises Unreachable and Failed.
    """
    digest = hashlib.new(algorithm)
    with _opened(source, timeout) as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
            if data.count(0) == len(data):
                target.seek(len(data), 1)
            else:
                target.write(data)
    target.truncate()
    return f"{algorithm}:{digest.hexdigest()}"


@contextmanager
def _opened(source: str, timeout: float) -> Iterator[Any]:
    try:
        with _stream(source, timeout) as stream:
            yield stream
    except HTTPError as error:
        raise Failed(f"{source}: the server says {error.code} {error.reason}", status=error.code) from None
    except (HTTPException, URLError, urls.ConnectionError, TimeoutError) as error:
        raise Unreachable(f"{source} can't be read: {getattr(error, 'reason', None) or error}") from None
    except OSError as error:
        raise Failed(f"{source} can't be read, or not be written here: {error.strerror or error}") from None


def _stream(source: str, timeout: float) -> Any:
    parts = urlsplit(source)
    if parts.scheme in ("http", "https"):
        # An answer that was packed on the way would not be the file of which the checksum is.
        return urls.open_url(source, timeout=timeout, decompress=False, http_agent="drover.kvm")
    return open(unquote(parts.path) if parts.scheme == "file" else source, "rb")
