# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums as users write them, ALGORITHM:HEX."""

from __future__ import annotations

import hashlib
import re

# The algorithms with the hexadecimal digits of each.
ALGORITHMS = {"sha256": 64, "sha384": 96, "sha512": 128}
HEXADECIMAL = re.compile(r"[0-9a-f]+", re.ASCII)
CHUNK = 2**20


def is_digest(algorithm: str, digits: str) -> bool:
    """Whether these are the digits of a checksum of that kind, in lower case."""
    return len(digits) == ALGORITHMS.get(algorithm) and bool(HEXADECIMAL.fullmatch(digits))


def hash_of(path: str, algorithm: str = "sha256") -> str:
    """The checksum of a file, ALGORITHM:HEX."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    return f"{algorithm}:{digest.hexdigest()}"
