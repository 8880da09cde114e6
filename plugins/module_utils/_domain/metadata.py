# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What we write into a domain's metadata: the VM's own record and the marker of a running migration. Pure.

The record: `<drover:vm xmlns:drover="urn:drover:kvm:1" version="1">` with `tags/tag` and one child per other value.
The marker: `<drover:migration xmlns:drover="urn:drover:migration:1" id= from= to= was= autostart= started=/>`,
with a child `<copy path=/>` for each file that is copied to the other node, `<state path=/>` for each file of UEFI and
a TPM that the node would keep when the VM has left, and `<device path= identity= size=/>` for each block device, so
that the other node can tell whether its own is the same. A recovery adds `ran=yes` where the source ran on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from .._xml import COMMENT, Property, add, drop, find, make, parse, text_of

PREFIX = "drover"
NAMESPACE = "urn:drover:kvm:1"
MARKER_NAMESPACE = "urn:drover:migration:1"
VERSION = "1"
DESCRIPTION = Property("description")
SCALARS = ("home", "owner")


def read(root: Element) -> dict[str, Any]:
    """The record of a domain tree: `managed`, `tags` (sorted), `home`, `owner` and other values that are there.

    `description` is libvirt's own element, which other tools show too.
    """
    element = _child(root, NAMESPACE, "vm")
    record: dict[str, Any] = {"managed": element is not None, "tags": [], **dict.fromkeys(SCALARS)}
    record["description"] = DESCRIPTION.get(root)
    for child in [] if element is None else element:
        name = _local(child)
        if name == "tags":
            record["tags"] = sorted(tag.text.strip() for tag in child if _local(tag) == "tag" and tag.text)
        elif name != COMMENT and not len(child):
            record[name] = (child.text or "").strip() or None
    return record


def edit(root: Element, changes: dict[str, Any]) -> None:
    """Write values (`tags`: a list; others: text, None removes) into the record; makes the record when missing.

    Children that are not named in `changes` stay.
    """
    element = _child(root, NAMESPACE, "vm")
    if element is None:
        declaration = {f"xmlns:{PREFIX}": NAMESPACE, "version": VERSION}
        element = add(make(root, "metadata"), f"{PREFIX}:vm", declaration)
    prefix = element.tag.rpartition(":")[0]
    for name, value in changes.items():
        for old in [child for child in element if _local(child) == name]:
            drop(element, old)
        if value:
            child = add(element, f"{prefix}:{name}" if prefix else name)
            if name == "tags":
                for tag in sorted(value):
                    add(child, f"{prefix}:tag" if prefix else "tag").text = tag
            else:
                child.text = str(value)


class Devices(NamedTuple):
    """What the record says of devices of one kind beyond libvirt's own words: `<nics><nic mac=.../></nics>`.

    `key` is the attribute by which a device is known.
    """

    name: str
    key: str

    def get(self, root: Element) -> dict[str, dict[str, str]]:
        """What is said of them, by their key in lower case."""
        element = _child(root, NAMESPACE, "vm")
        lists = [] if element is None else [child for child in element if _local(child) == f"{self.name}s"]
        own = [one for child in lists for one in child if _local(one) == self.name]
        return {
            one.get(self.key, "").lower(): {key: text for key, text in one.items() if key != self.key} for one in own
        }

    def put(self, root: Element, said: Mapping[str, Mapping[str, str]]) -> None:
        """Write what is said of them; those of which nothing is said are left out."""
        said = {key: dict(words) for key, words in sorted(said.items()) if words}
        if said == self.get(root):
            return
        edit(root, {f"{self.name}s": None})
        element = _child(root, NAMESPACE, "vm")
        if element is None or not said:
            return
        prefix = element.tag.rpartition(":")[0] + ":" if ":" in element.tag else ""
        parent = add(element, f"{prefix}{self.name}s")
        for key, words in said.items():
            add(parent, f"{prefix}{self.name}", {self.key: key, **words})


NICS = Devices("nic", "mac")
# By `IQN/LUN`, so that it says nothing of another volume that takes the disk's place.
DISKS = Devices("disk", "unit")


def record_xml(root: Element) -> str | None:
    """The record as libvirt's metadata call wants it: without prefixes; None when there is no record."""
    element = _child(root, NAMESPACE, "vm")
    return None if element is None else text_of(_plain(element))


def marker(root: Element) -> dict[str, Any] | None:
    """The migration marker of a domain tree, or None."""
    element = _child(root, MARKER_NAMESPACE, "migration")
    return None if element is None else _marker(element)


def marker_from_text(text: str | None) -> dict[str, Any] | None:
    """The marker from the answer of libvirt's metadata call (None where there is no marker)."""
    return None if text is None else _marker(parse(text))


def marker_xml(values: dict[str, Any]) -> str:
    """The marker as libvirt's metadata call wants it. `autostart` is a boolean, `started` seconds since the epoch."""
    texts = {**values, "autostart": "yes" if values.get("autostart") else "no"}
    names = ("id", "from", "to", "was", "autostart", "started", "home")
    element = Element("migration", {name: str(texts[name]) for name in names if texts.get(name) is not None})
    for path in values.get("copies") or ():
        add(element, "copy", {"path": path})
    for path in values.get("state") or ():
        add(element, "state", {"path": path})
    for device in values.get("devices") or ():
        add(element, "device", {name: str(device[name]) for name in ("path", "identity", "size")})
    return text_of(element)


def noted(text: str) -> str:
    """The marker, as libvirt gives it, with the word of a recovery that the VM ran on at the source (`ran`)."""
    element = parse(text)
    element.set("ran", "yes")
    return text_of(element)


def _marker(element: Element) -> dict[str, Any]:
    values: dict[str, Any] = {name: element.get(name) for name in ("id", "from", "to", "was")}
    values.update({"ran": True} if element.get("ran") == "yes" else {})
    values.update({"home": element.get("home")} if element.get("home") else {})
    started = element.get("started") or ""
    values["autostart"] = element.get("autostart") == "yes"
    values["started"] = int(started) if started.isdecimal() else None
    for name, child in (("copies", "copy"), ("state", "state")):
        if paths := [one.get("path", "") for one in element if _local(one) == child]:
            values[name] = paths
    return values


def _local(element: Element) -> str:
    return element.tag.rpartition(":")[2]


def _child(root: Element, namespace: str, name: str) -> Element | None:
    parent = find(root, "metadata")
    for child in [] if parent is None else parent:
        if _local(child) != name:
            continue
        prefix = child.tag.rpartition(":")[0]
        declaration = f"xmlns:{prefix}" if prefix else "xmlns"
        if namespace in (child.get(declaration), root.get(declaration)):
            return child
    return None


def _plain(element: Element) -> Element:
    copy = Element(_local(element), {name: value for name, value in element.items() if not name.startswith("xmlns")})
    copy.text = element.text
    for child in element:
        if child.tag != COMMENT:
            copy.append(_plain(child))
    return copy
