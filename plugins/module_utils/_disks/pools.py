# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of libvirt's storage pools: what each is made of, and its XML. Asks only /etc/ceph and LVM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from .._ceph_conf import check_monitor, clusters, host_of
from .._errors import Invalid, Refused
from .._fields import check_portal
from .._lvm import Lvm
from .._xml import find, parse

# What a new pool of a kind can't be without.
NEEDS = {
    "dir": ("path",),
    "netfs": ("path", "source", "hosts"),
    "logical": ("source",),
    "iscsi-direct": ("source", "hosts", "initiator"),
    "rbd": ("source", "hosts"),
}
# What it may be told; other options would have no effect.
TAKES = {**NEEDS, "iscsi-direct": (*NEEDS["iscsi-direct"], "user", "secret"), "rbd": (*NEEDS["rbd"], "user", "secret")}
# To build one of the others would make file systems or volume groups.
BUILT = ("dir", "netfs")
SOURCES = {"netfs": "dir/@path", "logical": "name", "iscsi-direct": "device/@path", "rbd": "name"}
# Kinds whose hosts have a port, and the usual one.
PORTS = {"iscsi-direct": 3260, "rbd": 6789}
AUTH = {"iscsi-direct": "chap", "rbd": "ceph"}


def described(xml: str) -> dict[str, Any]:
    """Source, hosts, initiator, user and secret of a pool; None or an empty list where it has none."""
    root = parse(xml)
    source = find(root, "source")
    kind = root.get("type", "")
    facts: dict[str, Any] = {"source": None, "hosts": [], "initiator": None, "user": None, "secret": None}
    if source is None or kind not in SOURCES:
        return facts
    path, _at, attribute = SOURCES[kind].partition("/@")
    element, auth, secret = find(source, path), find(source, "auth"), find(source, "auth/secret")
    if element is not None:
        facts["source"] = element.get(attribute) if attribute else element.text
    hosts = [(child.get("name", ""), child.get("port")) for child in source if child.tag == "host"]
    facts["hosts"] = [_host(name, port, kind) for name, port in hosts]
    initiator = find(source, "initiator/iqn")
    facts["initiator"] = None if initiator is None else initiator.get("name")
    facts["user"] = None if auth is None else auth.get("username")
    facts["secret"] = None if secret is None else secret.get("usage")
    return facts


def _host(name: str, port: str | None, kind: str) -> str:
    if kind not in PORTS:
        return name
    return f"{f'[{name}]' if ':' in name else name}:{port or PORTS[kind]}"


def filled(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a new pool, completed. Raises Invalid when something is missing, or does not belong to it."""
    found = {name: given[name] for name in ("path", "source", "hosts", "initiator", "user", "secret")}
    astray = [name for name, value in found.items() if value is not None and name not in TAKES[kind]]
    if astray:
        raise Invalid(f"{astray[0]} does not belong to a pool of type {kind}", option=astray[0])
    if kind == "rbd":
        known = clusters()
        found["hosts"] = [check_monitor(host) for host in found["hosts"] or []] or (known and list(known[0].monitors))
        found["user"] = found["user"] or "libvirt"
        found["secret"] = found["secret"] or f"client.{found['user']}"
    if kind == "iscsi-direct":
        found["hosts"] = [_portal(host) for host in found["hosts"] or []]
    if kind == "logical":
        found["path"] = f"/dev/{found['source']}"
    missing = [name for name in NEEDS[kind] if not found[name]]
    if missing:
        raise Invalid(f"{missing[0]} is missing; a new pool of type {kind} needs it", option=missing[0])
    return {**found, "hosts": found["hosts"] or []}


def _portal(host: str) -> str:
    """An address with its port; the port may be left out."""
    try:
        return check_portal(host)
    except ValueError:
        return check_portal(f"{host}:{PORTS['iscsi-direct']}")


def check_group(pool: Mapping[str, Any]) -> None:
    """Raise Refused for a group whose volumes lvmlockd gives to one node each: libvirt would take all of them."""
    group = Lvm().groups().get(pool["source"]) if pool["type"] == "logical" else None
    if group and group.shared:
        raise Refused(
            f"nodes share volume group {pool['source']}: as a pool, all of its volumes would become active on this "
            "node, and no VM on another one could start with them. Disks of type lvm need no pool"
        )


def pool_xml(state: Mapping[str, Any]) -> str:
    """The definition of a new pool."""
    kind = state["type"]
    root = Element("pool", {"type": kind})
    SubElement(root, "name").text = state["name"]
    SubElement(root, "uuid").text = state["uuid"]
    if kind != "dir":
        _write_source(SubElement(root, "source"), kind, state)
    if state["path"]:
        SubElement(SubElement(root, "target"), "path").text = state["path"]
    return tostring(root, encoding="unicode")


def _write_source(source: Element, kind: str, state: Mapping[str, Any]) -> None:
    for host in state["hosts"]:
        port = {"port": host.rpartition(":")[2]} if kind in PORTS else {}
        SubElement(source, "host", {"name": host_of(host) if port else host, **port})
    path, _at, attribute = SOURCES[kind].partition("/@")
    element = SubElement(source, path, {attribute: state["source"]} if attribute else {})
    element.text = None if attribute else state["source"]
    if kind == "netfs":
        SubElement(source, "format", {"type": "nfs"})
    if state["initiator"]:
        SubElement(SubElement(source, "initiator"), "iqn", {"name": state["initiator"]})
    if state["secret"]:
        auth = SubElement(source, "auth", {"type": AUTH[kind], "username": state["user"]})
        SubElement(auth, "secret", {"usage": state["secret"]})
