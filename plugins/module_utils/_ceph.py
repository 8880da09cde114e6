# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of Ceph's monitors: commands in, plain data out. The only file that imports the library of RADOS.

One connection for all commands of a module: a command takes under a millisecond on it, and 0.2 s as a call of `ceph`.
`connect` fails within the option `timeout` (5 s) when no monitor answers, and so does each command; the library alone
would wait for five minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Callable

from ._errors import DroverError, Failed, NotFound, Refused, Unreachable
from ._fields import Field, between, check_name

try:
    import rados
except ImportError:
    rados = None

OPTIONS = (
    Field("cluster", default="ceph", check=check_name),
    Field("user", default="client.admin"),
    Field("keyring", type="path"),
    Field("conf", type="path"),
    Field("timeout", type="int", default=5, check=between(1, 60)),
)
EPERM, ENOENT, EACCES, EBUSY, EOPNOTSUPP, ETIMEDOUT = 1, 2, 13, 16, 95, 110


def settings(options: Mapping[str, Any]) -> dict[str, str]:
    """What the library is told beside the file of the cluster; `timeout` is in seconds."""
    seconds = str(options["timeout"])
    names = ("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout")
    given = {"keyring": options["keyring"]} if options["keyring"] else {}
    return {**given, **dict.fromkeys(names, seconds)}


def _ours(number: int, what: str, words: str, cluster: str) -> DroverError:
    """Our exception for one of Ceph's error numbers."""
    details = {"errno": number, "ceph": words}
    if number == ETIMEDOUT:
        return Unreachable(f"{what}: Ceph cluster {cluster} gives no answer", **details)
    kind = {EPERM: Refused, EBUSY: Refused, ENOENT: NotFound}.get(number, Failed)
    return kind(f"{what}: {words or 'error ' + str(number)}", **details)


@contextmanager
def translated(what: str, cluster: str) -> Iterator[None]:
    """Raise our errors in place of the library's; `what` says what was tried."""
    try:
        yield
    except rados.Error as error:
        raise _ours(abs(getattr(error, "errno", None) or 0), what, str(error), cluster) from None


def _not_let_in(
    number: int, words: str, options: Mapping[str, Any], setting: Callable[[str], str | None]
) -> DroverError:
    """Our exception for a connection that did not come about."""
    cluster, user = options["cluster"], options["user"]
    details = {"errno": number, "ceph": words, "monitors": setting("mon_host")}
    if number == ETIMEDOUT:
        where = f"no monitor of {details['monitors']} within {options['timeout']} s"
        return Unreachable(f"Ceph cluster {cluster} gives no answer: {where}", **details)
    if number in (ENOENT, EOPNOTSUPP):
        return Refused(
            f"cluster {cluster} can't be opened as {user}: no key of this user in {setting('keyring')}", **details
        )
    if number == EACCES:
        return Refused(f"cluster {cluster} does not let {user} in with the key of {setting('keyring')}", **details)
    return Failed(f"cluster {cluster} can't be opened as {user}: {words}", **details)


@contextmanager
def connect(options: Mapping[str, Any]) -> Iterator[Ceph]:
    """An open connection as the options of OPTIONS say.

    Raises NotFound (no library, no file of the cluster), Refused (the cluster does not know this user and key) and
    Unreachable (no monitor answers within `timeout`).
    """
    cluster, user = options["cluster"], options["user"]
    if rados is None:
        raise NotFound("the Python library of Ceph is missing here; install the package python3-rados")
    conf = options["conf"] or f"/etc/ceph/{cluster}.conf"
    try:
        handle = rados.Rados(name=user, clustername=cluster, conffile=conf, conf=settings(options))
    except rados.Error as error:
        raise NotFound(f"{conf} can't be read: {error}; it says where the monitors of cluster {cluster} are") from None
    try:
        handle.connect()
    except rados.Error as error:
        raise _not_let_in(abs(getattr(error, "errno", None) or 0), str(error), options, handle.conf_get) from None
    try:
        yield Ceph(handle, cluster, user)
    finally:
        handle.shutdown()


class Ceph:
    """One open connection: what the monitors are asked and told, and the objects of a pool."""

    def __init__(self, handle: Any, cluster: str, user: str) -> None:
        self.handle, self.cluster, self.user = handle, cluster, user

    def ask(self, prefix: str, /, **arguments: Any) -> Any:
        """The answer to a command, as data. Numbers and booleans must be such; a None is left out.

        Raises NotFound, Refused or Failed with the monitor's own words, and Unreachable.
        """
        answer, _words = self._command({"prefix": prefix, "format": "json", **arguments}, prefix)
        return json.loads(answer) if answer.strip() else None

    def tell(self, prefix: str, /, **arguments: Any) -> str:
        """Give a command that changes something; returns what the monitor says about it. Raises as `ask`."""
        return self._command({"prefix": prefix, **arguments}, prefix)[1]

    def setting(self, name: str) -> str | None:
        """A setting as the leading monitor has it; None when this user may not ask, or nobody knows it."""
        try:
            leader = self.ask("quorum_status")["quorum_leader_name"]
            answer, _words = self._command({"prefix": "config get", "var": name}, name, target=leader)
            return str(json.loads(answer)[name])
        except (Refused, Failed, NotFound, KeyError, ValueError):
            return None

    def _command(self, command: dict[str, Any], what: str, **where: Any) -> tuple[bytes, str]:
        text = json.dumps({name: value for name, value in command.items() if value is not None})
        with translated(what, self.cluster):
            code, answer, words = self.handle.mon_command(text, b"", **where)
        if code:
            if abs(code) == EACCES:
                raise Failed(f"{what}: {self.user} may not do this ({words})", errno=EACCES, ceph=words)
            raise _ours(abs(code), what, words, self.cluster)
        return answer, words

    @contextmanager
    def pool(self, name: str, namespace: str = "") -> Iterator[Any]:
        """The library's handle of a pool, of one of its namespaces."""
        with translated(f"open pool {name}", self.cluster):
            handle = self.handle.open_ioctx(name)
        try:
            handle.set_namespace(namespace)
            yield handle
        finally:
            handle.close()

    def objects(self, pool: str, without: frozenset[str] = frozenset(), most: int = 1000) -> list[str]:
        """Names of objects in all namespaces of a pool, `most` at the most, but for those that are named `without`."""
        with self.pool(pool, rados.LIBRADOS_ALL_NSPACES) as handle, translated(f"list pool {pool}", self.cluster):
            return list(islice((found.key for found in handle.list_objects() if found.key not in without), most))
