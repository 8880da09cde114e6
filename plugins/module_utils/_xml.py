# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain XML as a tree that is edited in place; what this collection does not know survives as it was.

Namespaces are not resolved while parsing: `qemu:commandline` and `xmlns:qemu` stay plain names, so prefixes and the
place of their declarations come out as they went in. `text_of` writes as libvirt itself does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable
from xml.etree.ElementTree import Element, SubElement, TreeBuilder
from xml.parsers import expat

from ._errors import Invalid

COMMENT = "!--"
MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
TEXT = str.maketrans({**MARKUP, '"': "&quot;", "'": "&apos;"})
METADATA_TEXT = str.maketrans(MARKUP)
ATTRIBUTE = str.maketrans({**MARKUP, '"': "&quot;", "'": "&apos;", "\n": "&#10;", "\t": "&#9;"})
METADATA_ATTRIBUTE = str.maketrans({**MARKUP, '"': "&quot;", "\n": "&#10;", "\t": "&#9;"})


def parse(text: str) -> Element:
    """The root element. Raises Invalid on broken XML and on any document type declaration (and so on entities).

    Comments before and after it, such as libvirt writes into its own files, are left out.
    """
    builder = TreeBuilder()
    open_elements: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        open_elements.append(tag)
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        open_elements.pop()
        builder.end(tag)

    def comment(text: str) -> None:
        if open_elements:
            builder.start(COMMENT, {})
            builder.data(text)
            builder.end(COMMENT)

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.CommentHandler = comment
    parser.StartDoctypeDeclHandler = _no_doctype
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise Invalid(f"this is not XML: {error}") from None
    return builder.close()


def _no_doctype(name: str, *_rest: object) -> None:
    raise Invalid(f"a document type declaration ({name}) is not allowed in domain XML")


def text_of(element: Element) -> str:
    """The XML text of an element, as libvirt formats it."""
    parts: list[str] = []
    _write(element, parts.append, metadata=False)
    return "".join(parts)


def _write(element: Element, add: Callable[[str], object], metadata: bool) -> None:
    if element.tag == COMMENT:
        add(f"<!--{element.text}-->")
        return
    # libvirt has libxml2 write what is in the metadata, which quotes otherwise than libvirt itself.
    quote, values = ('"', METADATA_ATTRIBUTE) if metadata else ("'", ATTRIBUTE)
    add(f"<{element.tag}")
    for name, value in element.items():
        add(f" {name}={quote}{value.translate(values)}{quote}")
    if not len(element) and not element.text:
        add("/>")
        return
    texts = METADATA_TEXT if metadata else TEXT
    add(">" + (element.text or "").translate(texts))
    for child in element:
        _write(child, add, metadata or element.tag == "metadata")
        add((child.tail or "").translate(texts))
    add(f"</{element.tag}>")


@dataclass(frozen=True)
class Property:
    """One value in the tree: the path of its element, or of an attribute (`cpu/@mode`), and its conversion.

    The same declaration reads (`get`) and writes (`put`). `fixed` are attributes that an element made for the value
    must carry beside it.
    """

    path: str
    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = str
    fixed: tuple[tuple[str, str], ...] = ()

    def get(self, root: Element) -> Any:
        """The value, or None when there is none."""
        elements, _at, attribute = self.path.partition("@")
        element = find(root, elements)
        text = None if element is None else element.get(attribute) if attribute else (element.text or "").strip()
        return None if text is None else self.read(text)

    def put(self, root: Element, value: Any) -> None:
        """Write the value; None removes it, and the elements that are empty without it."""
        elements, _at, attribute = self.path.partition("@")
        if value is None:
            _remove(root, [step for step in elements.split("/") if step], attribute)
            return
        element = make(root, elements)
        if attribute:
            element.set(attribute, self.write(value))
        else:
            element.text = self.write(value)
        for name, constant in self.fixed:
            element.set(name, constant)


class Nonzero(Property):
    """A number of which 0 stands for the default, which is not written down."""

    def put(self, root: Element, value: int | None) -> None:
        """Write it; 0 and None take it away."""
        super().put(root, value or None)


@dataclass(frozen=True)
class Flag:
    """A value that is true when its element is there, such as `readonly`."""

    path: str

    def get(self, root: Element) -> bool:
        """Whether the element is there."""
        return find(root, self.path) is not None

    def put(self, root: Element, value: bool | None) -> None:
        """Make or remove the element."""
        if value:
            make(root, self.path)
        else:
            _remove(root, self.path.split("/"), "")


def find(root: Element, path: str) -> Element | None:
    """The first element at a path of names; the root itself for an empty path."""
    element: Element | None = root
    for step in path.split("/"):
        if step and element is not None:
            element = next((child for child in element if child.tag == step), None)
    return element


def make(root: Element, path: str) -> Element:
    """The first element at a path of names, made where it is missing."""
    for step in path.split("/"):
        if step:
            child = find(root, step)
            root = add(root, step) if child is None else child
    return root


def add(parent: Element, name: str, attributes: Mapping[str, str] | None = None) -> Element:
    """A new last child, on a line of its own where its siblings are."""
    child = SubElement(parent, name, dict(attributes or {}))
    if len(parent) > 1:
        child.tail, parent[-2].tail = parent[-2].tail, parent.text
    return child


def _remove(root: Element, steps: list[str], attribute: str) -> None:
    trail = [root]
    for step in steps:
        child = find(trail[-1], step)
        if child is None:
            return
        trail.append(child)
    if attribute:
        trail[-1].attrib.pop(attribute, None)
    elif len(trail) > 1:
        drop(trail[-2], trail.pop())
    while len(trail) > 1 and not (len(trail[-1]) or trail[-1].attrib or (trail[-1].text or "").strip()):
        drop(trail[-2], trail.pop())


def drop(parent: Element, child: Element) -> None:
    """Take a child out; the white space around its place stays as it was."""
    place = list(parent).index(child)
    last = place == len(parent) - 1
    if last and place:
        parent[place - 1].tail = child.tail
    elif last:
        parent.text = None if not (parent.text or "").strip() else parent.text
    parent.remove(child)


def devices(root: Element, kind: str) -> list[Element]:
    """The devices of one kind, such as `disk`, in their order."""
    parent = find(root, "devices")
    return [] if parent is None else [child for child in parent if child.tag == kind]


def target_of(disk: Element) -> str:
    """The name of a disk in the VM, such as vda."""
    target = find(disk, "target")
    return "" if target is None else target.get("dev", "")


def empty(drive: Element) -> None:
    """Take the medium out of a drive."""
    for child in [child for child in drive if child.tag in ("source", "backingStore")]:
        drop(drive, child)


def add_device(root: Element, device: Element) -> None:
    """Put a device after the last of its kind, else at the end of the devices."""
    parent = make(root, "devices")
    same = [place for place, child in enumerate(parent) if child.tag == device.tag]
    place = same[-1] + 1 if same else len(parent)
    if place:
        device.tail, parent[place - 1].tail = parent[place - 1].tail, parent[0].tail if place > 1 else parent.text
    parent.insert(place, device)
