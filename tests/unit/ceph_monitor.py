# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the library of RADOS with a monitor behind it, which keeps pools and does what Ceph 18 was seen to do.

Its mistakes are those of the real one: it makes what should be refused, calls a success what was none, and sets
min_size when it is told a size.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

LIBRADOS_ALL_NSPACES = "all"
FLAGS = ("nodelete", "nopgchange", "nosizechange", "noscrub", "nodeep-scrub", "bulk")
NUMBERS = ("size", "min_size")
EPERM, ENOENT, EEXIST, EINVAL, EOPNOTSUPP = 1, 2, 17, 22, 95
TREE = [
    {"id": -1, "name": "default", "type": "root", "children": [-2, -3]},
    {"id": -2, "name": "hv1", "type": "host", "children": [0, 1]},
    {"id": -3, "name": "hv2", "type": "host", "children": [2, 3]},
    *({"id": n, "name": f"osd.{n}", "type": "osd", "device_class": "hdd", "crush_weight": 1.0} for n in range(4)),
]


class Error(Exception):
    """As the library's, with a number."""

    def __init__(self, words: str, errno: int | None = None) -> None:
        super().__init__(words)
        self.errno = errno


class Refusal(Exception):
    """What the monitor answers with an error number."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.number, self.words = number, words


class Monitor:
    """The cluster: pools, rules, profiles, objects, and every command that changed something."""

    def __init__(self) -> None:
        self.pools: dict[str, dict[str, Any]] = {}
        self.rules = [_rule(0, "replicated_rule", 1, "host")]
        self.profiles = {"default": {"k": "2", "m": "2", "plugin": "jerasure"}}
        self.objects: dict[str, list[str]] = {}
        self.settings = {"mon_allow_pool_delete": "true", "mon_allow_pool_size_one": "true"}
        self.told: list[str] = []
        self.next_id = 1

    def command(self, given: dict[str, Any]) -> Any:
        """The answer to one command; raises Refusal."""
        name = given["prefix"].replace(" ", "_").replace("-", "_")
        if name not in READS:
            self.told.append(given["prefix"])
        return getattr(self, name)(given)

    def _pool(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["pool"] not in self.pools:
            raise Refusal(ENOENT, f"unrecognized pool '{given['pool']}'")
        return self.pools[given["pool"]]

    def quorum_status(self, _given: dict[str, Any]) -> Any:
        return {"quorum_leader_name": "q1"}

    def config_get(self, given: dict[str, Any]) -> Any:
        return {given["var"]: self.settings[given["var"]]}

    def osd_tree(self, _given: dict[str, Any]) -> Any:
        return {"nodes": TREE}

    def osd_pool_ls(self, _given: dict[str, Any]) -> Any:
        return list(self.pools.values())

    def osd_crush_rule_dump(self, _given: dict[str, Any]) -> Any:
        return self.rules

    def osd_erasure_code_profile_get(self, given: dict[str, Any]) -> Any:
        if given["name"] not in self.profiles:
            raise Refusal(ENOENT, f"unknown erasure code profile '{given['name']}'")
        return self.profiles[given["name"]]

    def osd_erasure_code_profile_set(self, given: dict[str, Any]) -> Any:
        if given["name"] in self.profiles:
            raise Refusal(EPERM, f"will not override erasure code profile {given['name']}")
        self.profiles[given["name"]] = {"plugin": "jerasure", **dict(word.split("=", 1) for word in given["profile"])}

    def osd_crush_rule_create_replicated(self, given: dict[str, Any]) -> Any:
        root = given["root"] + (f"~{given['class']}" if "class" in given else "")
        self.rules.append(_rule(len(self.rules), given["name"], 1, given["type"], root))

    def osd_crush_rule_create_erasure(self, given: dict[str, Any]) -> Any:
        domain = self.profiles[given["profile"]].get("crush-failure-domain", "host")
        self.rules.append(_rule(len(self.rules), given["name"], 3, domain))

    def osd_pool_create(self, given: dict[str, Any]) -> Any:
        name, erasure = given["pool"], given.get("pool_type") == "erasure"
        if name in self.pools or name.startswith("."):
            return
        profile = self.profiles[given.get("erasure_code_profile", "default")] if erasure else {}
        rule = given.get("rule")
        if erasure and rule is None:
            rule = name
            self.osd_crush_rule_create_erasure({"name": rule, "profile": given.get("erasure_code_profile", "default")})
        parts = int(profile.get("k", 0)) + int(profile.get("m", 0))
        assert isinstance(given.get("pg_num", 1), int), "the real one says: bad or missing field 'pg_num'"
        self.pools[name] = {
            "pool_id": self.next_id,
            "pool_name": name,
            "flags_names": "hashpspool",
            "type": 3 if erasure else 1,
            "size": parts or given.get("size", 3),
            "min_size": parts - 1 if parts else 2,
            "crush_rule": next(one["rule_id"] for one in self.rules if one["rule_name"] == (rule or "replicated_rule")),
            "pg_autoscale_mode": given.get("autoscale_mode", "on"),
            "pg_num_target": given.get("pg_num", 1),
            "quota_max_bytes": 0,
            "quota_max_objects": 0,
            "erasure_code_profile": given.get("erasure_code_profile", "default") if erasure else "",
            "options": {},
            "application_metadata": {},
        }
        self.next_id += 1

    def osd_pool_set(self, given: dict[str, Any]) -> Any:
        pool, var, val = self._pool(given), given["var"], given["val"]
        assert isinstance(val, str)
        flags = pool["flags_names"].split(",")
        if (var, "nosizechange" in flags) == ("size", True):
            raise Refusal(EPERM, "pool size change is disabled; you must unset nosizechange flag for the pool first")
        if var in FLAGS or var == "allow_ec_overwrites":
            name = "ec_overwrites" if var not in FLAGS else var
            pool["flags_names"] = ",".join([one for one in flags if one != name] + ([name] if val == "true" else []))
        elif var in NUMBERS:
            self._set_size(pool, var, int(val), given)
        elif var == "crush_rule":
            pool[var] = next(rule["rule_id"] for rule in self.rules if rule["rule_name"] == val)
        elif var == "pg_num":
            self._set_pg_num(pool, int(val))
        elif var == "pg_autoscale_mode":
            pool[var] = val
        elif _value(val) == 0:
            pool["options"].pop(var, None)
        else:
            self._check_bias({var: _value(val)})
            self._check_pgs(pool["pg_num_target"], {**pool["options"], var: _value(val)})
            pool["options"][var] = _value(val)

    def _set_size(self, pool: dict[str, Any], var: str, number: int, given: dict[str, Any]) -> None:
        if pool["type"] == 3 and var == "size":
            raise Refusal(EOPNOTSUPP, "can not change the size of an erasure-coded pool")
        if var == "min_size" and number > pool["size"]:
            raise Refusal(EINVAL, f"pool min_size must be between 1 and size, which is set to {pool['size']}")
        if (var, number) == ("size", 1) and not given.get("yes_i_really_mean_it"):
            raise Refusal(EPERM, "WARNING: setting pool size 1 could lead to data loss")
        pool[var] = number
        if var == "size":
            pool["min_size"] = number - number // 2

    def _set_pg_num(self, pool: dict[str, Any], number: int) -> None:
        self._check_pgs(number, pool["options"])
        pool["pg_num_target"] = number

    @staticmethod
    def _check_pgs(number: int, options: dict[str, Any]) -> None:
        least, most = options.get("pg_num_min", 0), options.get("pg_num_max", 0)
        if least > number:
            raise Refusal(EINVAL, f"specified pg_num_min {least} > pg_num {number}")
        if most and most < number:
            raise Refusal(EINVAL, f"specified pg_num_max {most} < pg_num {number}")

    @staticmethod
    def _check_bias(options: dict[str, Any]) -> None:
        if not 0 <= options.get("pg_autoscale_bias", 1) <= 1000:
            raise Refusal(EINVAL, "pg_autoscale_bias must be between 0 and 1000")

    def osd_pool_set_quota(self, given: dict[str, Any]) -> Any:
        self._pool(given)[f"quota_{given['field']}"] = int(given["val"])

    def osd_pool_application_enable(self, given: dict[str, Any]) -> Any:
        apps = self._pool(given)["application_metadata"]
        if apps and given["app"] not in apps and not given.get("yes_i_really_mean_it"):
            raise Refusal(EPERM, "Are you SURE? Pool already has an enabled application")
        apps[given["app"]] = {}

    def osd_pool_application_disable(self, given: dict[str, Any]) -> Any:
        if not given.get("yes_i_really_mean_it"):
            raise Refusal(EPERM, "Are you SURE? Disabling an application within a pool")
        del self._pool(given)["application_metadata"][given["app"]]

    def osd_pool_rename(self, given: dict[str, Any]) -> Any:
        if given["srcpool"] in self.pools:
            pool = self.pools.pop(given["srcpool"])
            self.pools[given["destpool"]] = {**pool, "pool_name": given["destpool"]}

    def osd_pool_delete(self, given: dict[str, Any]) -> Any:
        if given["pool"] != given["pool2"] or not given.get("yes_i_really_really_mean_it"):
            raise Refusal(EPERM, "WARNING: this will *PERMANENTLY DESTROY* all data")
        self.pools.pop(given["pool"], None)


READS = {
    *("quorum_status", "config_get", "osd_tree", "osd_pool_ls"),
    *("osd_crush_rule_dump", "osd_erasure_code_profile_get"),
}


def _value(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _rule(number: int, name: str, kind: int, domain: str, root: str = "default") -> dict[str, Any]:
    op = "chooseleaf_firstn" if kind == 1 else "chooseleaf_indep"
    steps = [{"op": "take", "item_name": root}, {"op": op, "num": 0, "type": domain}, {"op": "emit"}]
    return {"rule_id": number, "rule_name": name, "type": kind, "steps": steps}


class Pool:
    """An open pool."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def set_namespace(self, _name: str) -> None:
        """All namespaces are one here."""

    def list_objects(self) -> Any:
        return iter([type("Object", (), {"key": name}) for name in self.names])

    def close(self) -> None:
        """Nothing to close."""


class Library:
    """What `import rados` gives: `Rados` and the errors; `failure` is what a connection ends with."""

    Error = Error
    LIBRADOS_ALL_NSPACES = LIBRADOS_ALL_NSPACES

    def __init__(self, monitor: Monitor) -> None:
        self.monitor, self.failure, self.left_open = monitor, 0, 0
        self.opened: list[dict[str, Any]] = []
        self.Rados = self._connection

    def _connection(self, **options: Any) -> Any:
        """A connection that is not open yet; a file of another cluster is not there."""
        self.opened.append(options)
        if options["clustername"] != "ceph":
            raise Error("RADOS object not found (error calling conf_read_file)", ENOENT)
        return Handle(self)


class Handle:
    """One connection."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def connect(self) -> None:
        if self.library.failure:
            raise Error("error connecting to the cluster", self.library.failure)
        self.library.left_open += 1

    def shutdown(self) -> None:
        self.library.left_open -= 1

    def conf_get(self, name: str) -> str:
        return {"mon_host": "10.231.5.13", "keyring": "/etc/ceph/ceph.client.admin.keyring"}[name]

    def mon_command(self, text: str, _data: bytes, **_where: Any) -> tuple[int, bytes, str]:
        try:
            answer = self.library.monitor.command(json.loads(text))
        except Refusal as refusal:
            return -refusal.number, b"", refusal.words
        return 0, b"" if answer is None else json.dumps(answer).encode(), ""

    def open_ioctx(self, name: str) -> Pool:
        return Pool(self.library.monitor.objects.get(name, []))
