# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kind of storage says about itself: CONTRIBUTING.md says what a new kind takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, NamedTuple
from xml.etree.ElementTree import Element

from .._fields import Field

Options = dict[str, Any]
# The value of a libvirt secret, by its kind and usage name.
Password = Callable[[str, str], str]
ANOTHER = "that would be another disk; take this one off first, then add the other one"


class Volume(NamedTuple):
    """What a store holds for one disk.

    `identity` is the disk's, `size` in bytes, `mark` the UUID of the VM for which we made it, `backing` what it is
    based on. `template`: others are made from it, so it is nobody's disk. `clone`: what it is based on is a template.
    """

    identity: str
    size: int
    mark: str | None = None
    backing: str | None = None
    template: bool = False
    clone: bool = False

    @property
    def name(self) -> str:
        """The volume for people: its identity without the kind."""
        return self.identity.partition(":")[2]


def _nothing(_options: Options) -> str | None:
    return None


def _as_it_is(_options: Options, _uuid: str, _password: Password) -> None:
    pass


def _always(_options: Options, _size: int) -> None:
    pass


def _exactly(_options: Options, size: int) -> int:
    return size


def _none(_identity: str) -> list[str]:
    return []


@dataclass(frozen=True)
class Store:
    """The verbs of a kind whose volumes are made from the VM's side. They take the options of a disk.

    - `inspect`: the volume, or None when there is none. Raises Refused for what must not become a disk.
    - `check_new`: raises Invalid when no volume could be made there (a folder that is missing). Returns the size of
      `options["source"]` where it can tell.
    - `create` (options, size, UUID): makes it with our mark, never over one that is there; False when it can't be
      marked. `options["source"]` is what it starts as; without one it is empty. `size` None means that of the source.
    - `grow` (options, size): makes it bigger.
    - `marked` (VM, UUID, disks): the volumes that carry this VM's mark, of the disks given and of its usual names.
    - `remove` (identity, UUID): deletes one; looks at the mark, and at who has it open, once more.
    - `check_free`: raises Refused when somebody has it open whom the peers do not know of; asked before a start.
    - `canonical`: the one spelling of an identity that has several.
    - `based` (identity): the volumes that are based on it, so that it must stay.
    - `grows_open`: whether `grow` may be used while QEMU has the volume open; else QEMU alone grows it then.
    - `check_grow` (options, size): raises Refused when the volume can't get as big.
    - `rounded` (options, size): the size that a volume gets for the size asked for.
    """

    inspect: Callable[[Options], Volume | None]
    check_new: Callable[[Options], int | None]
    create: Callable[[Options, int | None, str], bool]
    grow: Callable[[Options, int], None]
    marked: Callable[[str, str, list[Options]], list[Volume]]
    remove: Callable[[str, str], None]
    canonical: Callable[[str], str] = str
    grows_open: bool = False
    check_free: Callable[[Options], object] = _nothing
    check_grow: Callable[[Options, int], None] = _always
    rounded: Callable[[Options, int], int] = _exactly
    based: Callable[[str], list[str]] = _none


@dataclass(frozen=True)
class Kind:
    """One kind of storage behind a disk.

    `fields` are its own options, `needs` those without which a new disk can't be. `recognises` tells its disks in
    domain XML, `source` makes the empty XML of a new one, `fill` (options, VM's name, the disk's number) completes the
    options of a new one, and `identity` is the name by which the storage is the same on every node. `complaint` says
    what speaks against the options of a new disk. A kind without a `store` has volumes that another module makes; a
    running VM is still told when one of them has grown. `check_start` (options, UUID of the VM, passwords) raises
    Refused before a start when what is there is not what was declared, or is in use.
    """

    name: str
    fields: tuple[Field, ...]
    needs: tuple[str, ...]
    recognises: Callable[[Element], bool]
    source: Callable[[], Element]
    fill: Callable[[Options, str, int], Options]
    identity: Callable[[Options], str | None]
    complaint: Callable[[Options], str | None] = _nothing
    store: Store | None = None
    check_start: Callable[[Options, str, Password], object] = _as_it_is

    def volume_name(self, options: Options) -> str:
        """The volume of a disk, for people."""
        return str(self.identity(options)).partition(":")[2]
