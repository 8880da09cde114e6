# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small real Ceph cluster on the nodes: monitors with a manager each, and OSDs (BlueStore) on sparse files.

The daemons have a ceph.conf of their own, /etc/ceph/lab/ceph.conf, so that a site may write /etc/ceph/ceph.conf on any
node. Only the first monitor's node has that from the start, and the keyring of client.admin. Keys are made here, once,
and kept with the lab's state; what a node has already is never made again.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import struct
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from .run import LabError, run, wait_for
from .topology import CEPH_PACKAGES, CephCluster, Topology

STEP_SECONDS = 180
READY_SECONDS = 180
OWN_CONF = "/etc/ceph/lab/ceph.conf"
CAPS = {"mon": "allow *", "osd": "allow *", "mds": "allow *", "mgr": "allow *"}
MGR_CAPS = {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"}
# Small daemons. Proposals that are collected for a second would make every change of a pool wait as long.
SETTINGS: dict[str, dict[str, Any]] = {
    "global": {
        "auth_cluster_required": "cephx",
        "auth_service_required": "cephx",
        "auth_client_required": "cephx",
        "auth_allow_insecure_global_id_reclaim": "false",
        "osd_pool_default_min_size": 1,
        "osd_pool_default_pg_num": 8,
        "ms_async_op_threads": 1,
    },
    "mon": {
        "paxos_propose_interval": 0.05,
        "paxos_min_wait": 0.01,
        # The managers' default ones are "restful iostat nfs", of which the first does not load on Debian 13.
        "mgr_initial_modules": "iostat",
        "mon_data_avail_warn": 5,
        "mon_data_avail_crit": 2,
        "mon_osd_cache_size": 10,
        "mon_memory_autotune": "false",
        "rocksdb_cache_size": 16 << 20,
    },
    "osd": {
        "bluestore_cache_autotune": "false",
        "bluestore_cache_size": 64 << 20,
        "osd_memory_target": 896 << 20,
        "osd_op_num_shards": 2,
        "osd_op_num_threads_per_shard": 1,
        "osd_map_cache_size": 20,
        "osd_max_pg_log_entries": 500,
        "osd_min_pg_log_entries": 250,
        "osd_mclock_skip_benchmark": "true",
    },
}
UNIT = f"""[Unit]
StartLimitIntervalSec=0

[Service]
Environment=CEPH_CONF={OWN_CONF}
"""
# bcrypt cannot be imported in a subinterpreter (ceph-mgr 18.2 with Python 3.13), and takes all of the manager's modules
# down with it. They need it for the passwords of the dashboard only.
BCRYPT = '''"""Stands in for bcrypt in the manager's modules, which cannot import the real one."""


def gensalt(*_words, **_options):
    raise RuntimeError("bcrypt is not available in this manager")


hashpw = checkpw = gensalt
'''
START = """
start() {
  if ! systemctl -q is-active "$1"; then systemctl -q enable "$1"; systemctl start "$1"; echo changed; fi
}
"""
INSTALL = """
if ! command -v ceph-osd >/dev/null; then
  printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends install {packages} >/dev/null
  rm /usr/sbin/policy-rc.d
  echo changed
fi
# Each start of a manager leaves reports of modules that it cannot load.
systemctl -q mask --now ceph-crash.service
"""
MONITOR = """
dir=/var/lib/ceph/mon/ceph-{node}
if ! [ -e $dir/done ]; then
  rm -rf $dir
  install -d -o ceph -g ceph $dir
  install -m 600 -o ceph -g ceph /etc/ceph/lab/keyring /run/lab.keyring
  monmaptool --create --clobber --fsid {fsid} {monitors} /run/lab.monmap >/dev/null
  ceph-mon --setuser ceph --setgroup ceph --mkfs -i {node} --monmap /run/lab.monmap --keyring /run/lab.keyring
  rm /run/lab.keyring /run/lab.monmap
  touch $dir/done
fi
start ceph-mon@{node}
dir=/var/lib/ceph/mgr/ceph-{node}
install -d -o ceph -g ceph $dir
ceph-authtool --create-keyring $dir/keyring --name mgr.{node} --add-key {key} >/dev/null
chown ceph: $dir/keyring
start ceph-mgr@{node}
"""
REGISTER = """
if ! grep -q '"uuid":"{uuid}"' <<<"$known"; then
  echo '{{"cephx_secret": "{key}"}}' | ceph osd new {uuid} {number} -i - >/dev/null
  echo changed
fi
"""
OSD = """
dir=/var/lib/ceph/osd/ceph-{number}
if ! [ -e $dir/ready ]; then
  rm -rf $dir
  install -d -o ceph -g ceph $dir
  ceph-authtool --create-keyring $dir/keyring --name osd.{number} --add-key {key} >/dev/null
  chown ceph: $dir/keyring
  ceph-osd -i {number} --mkfs --osd-uuid {uuid} --setuser ceph --setgroup ceph >/dev/null 2>&1
fi
start ceph-osd@{number}
"""
# The health of a cluster that has just started is that of the day before: only a new object proves anything.
PROBE = """
ceph --connect-timeout 5 status -f json
file=$(mktemp /run/lab-probe.XXXXXX)
trap 'rm -f $file $file.read' EXIT
head -c 64 /dev/urandom >$file
rados="timeout 5 rados -p .mgr -N lab"
$rados put ${file##*/} $file
$rados get ${file##*/} $file.read
cmp $file $file.read
$rados rm ${file##*/}
"""


def fsid(lab: str) -> str:
    """The id of a lab's cluster."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"drover-lab/{lab}"))


def new_key() -> str:
    """A new cephx key, as ``ceph-authtool --gen-print-key`` makes it."""
    now = time.time()
    secret = os.urandom(16)
    return base64.b64encode(struct.pack("<HIIH", 1, int(now), int(now % 1 * 1e9), len(secret)) + secret).decode("ascii")


def conf(topology: Topology, ceph: CephCluster, cluster: str, daemons: bool = True) -> str:
    """The text of a ceph.conf: of clients, or with what the daemons need besides."""
    network = topology.networks[ceph.network]
    addresses = ",".join(network.address(topology.node(node).number) for node in ceph.monitors)
    common = {"fsid": cluster, "mon_initial_members": ",".join(ceph.monitors), "mon_host": addresses}
    sections: dict[str, dict[str, Any]] = {"global": common}
    if daemons:
        hosts = len([node for node, count in ceph.osds.items() if count])
        common["public_network"] = network.subnet
        common["osd_pool_default_size"] = str(min(3, hosts) if hosts > 1 else min(2, sum(ceph.osds.values())))
        common["osd_crush_chooseleaf_type"] = str(int(hosts > 1))
        size = {"bluestore_block_size": int(ceph.size[:-1]) << (30 if ceph.size.endswith("G") else 20)}
        for more in (SETTINGS, {"osd": size}, ceph.settings):
            for section, values in more.items():
                sections.setdefault(section, {}).update(values)
    return "".join(
        f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()) + "\n"
        for section, values in sections.items()
    )


def keyring(keys: dict[str, str], caps: dict[str, dict[str, str]]) -> str:
    """The text of a keyring with the entities of ``caps``."""
    text = ""
    for entity, allowed in caps.items():
        text += f"[{entity}]\n\tkey = {keys[entity]}\n"
        text += "".join(f'\tcaps {daemon} = "{what}"\n' for daemon, what in allowed.items())
    return text


def files(topology: Topology, ceph: CephCluster, node: str, cluster: str, keys: dict[str, str]) -> dict[str, str]:
    """Path → text of what a node gets before its daemons start; those with keys have "keyring" in their names."""
    found = {OWN_CONF: conf(topology, ceph, cluster), "/usr/share/ceph/mgr/bcrypt.py": BCRYPT}
    found.update({f"/etc/systemd/system/ceph-{kind}@.service.d/lab.conf": UNIT for kind in ("mon", "mgr", "osd")})
    if node in ceph.monitors:
        everything = {"mon.": {"mon": "allow *"}, "client.admin": CAPS}
        everything.update({f"mgr.{name}": MGR_CAPS for name in ceph.monitors})
        found["/etc/ceph/lab/keyring"] = keyring(keys, everything)
    if node == ceph.monitors[0]:
        found["/etc/ceph/ceph.client.admin.keyring"] = keyring(keys, {"client.admin": CAPS})
        found["/etc/ceph/ceph.conf"] = conf(topology, ceph, cluster, daemons=False)
    return found


class Ceph:
    """The cluster of one lab."""

    def __init__(self, lab: str, topology: Topology, ceph: CephCluster, state: Path) -> None:
        self.topology, self.ceph, self.state = topology, ceph, state
        self.fsid = fsid(lab)
        self.nodes = list(dict.fromkeys((*ceph.monitors, *ceph.osds)))

    def ensure(self, look: bool = True) -> bool:
        """Make the cluster, or start what is missing of it, and wait until it works; returns whether anything was.

        ``look``: it may well work already.
        """
        if look and self._works()[0]:
            return False
        keys = self._keys()
        words = [self._each(self.nodes, lambda node: self._write(node, keys))]
        words.append(self._each(list(self.ceph.monitors), lambda node: self._monitor(node, keys)))
        words.append(self._on(self.ceph.monitors[0], self._register(keys)).stdout)
        words.append(self._each(list(self.ceph.osds), lambda node: self._osds(node, keys)))
        wait_for("Ceph that takes a new object", self._works, READY_SECONDS, step=0.3)
        return "changed" in "".join(words)

    def status(self) -> dict[str, Any]:
        """Its health as the monitors say (None when they don't answer), and where its daemons are."""
        done = self._on(self.ceph.monitors[0], "ceph --connect-timeout 5 status -f json", check=False)
        found = json.loads(done.stdout) if done.returncode == 0 else {}
        up = found.get("osdmap", {}).get("num_up_osds")
        where = {"monitors": list(self.ceph.monitors), "osds": self.ceph.numbers()}
        return {"fsid": self.fsid, **where, "osds_up": up, "health": found.get("health", {}).get("status")}

    def _keys(self) -> dict[str, str]:
        path = self.state / "ceph-keys.json"
        if not path.exists():
            entities = ["mon.", "client.admin", *(f"mgr.{node}" for node in self.ceph.monitors)]
            entities += [f"osd.{number}" for numbers in self.ceph.numbers().values() for number in numbers]
            new = path.with_suffix(".new")
            new.touch(mode=0o600)
            new.write_text(json.dumps({entity: new_key() for entity in entities}), encoding="ascii")
            new.rename(path)
        found: dict[str, str] = json.loads(path.read_text(encoding="ascii"))
        return found

    def _uuid(self, number: int) -> str:
        return str(uuid.uuid5(uuid.UUID(self.fsid), f"osd.{number}"))

    def _write(self, node: str, keys: dict[str, str]) -> str:
        """Give a node its files; those that somebody has changed since stay."""
        script = INSTALL.format(packages=" ".join(CEPH_PACKAGES))
        for path, text in files(self.topology, self.ceph, node, self.fsid, keys).items():
            mode = "600" if "keyring" in path else "644"
            script += f"[ -e {path} ] || install -D -m {mode} /dev/stdin {path} <<'END'\n{text}END\n"
        return self._on(node, script + "systemctl daemon-reload\n").stdout

    def _monitor(self, node: str, keys: dict[str, str]) -> str:
        network = self.topology.networks[self.ceph.network]
        words = ""
        for name in self.ceph.monitors:
            address = network.address(self.topology.node(name).number)
            words += f" --addv {name} [v2:{address}:3300,v1:{address}:6789]"
        return self._on(node, MONITOR.format(node=node, fsid=self.fsid, monitors=words, key=keys[f"mgr.{node}"])).stdout

    def _register(self, keys: dict[str, str]) -> str:
        numbers = [number for numbers in self.ceph.numbers().values() for number in numbers]
        return "known=$(ceph osd dump -f json)\n" + "".join(
            REGISTER.format(uuid=self._uuid(number), number=number, key=keys[f"osd.{number}"]) for number in numbers
        )

    def _osds(self, node: str, keys: dict[str, str]) -> str:
        script = "".join(
            OSD.format(number=number, key=keys[f"osd.{number}"], uuid=self._uuid(number))
            for number in self.ceph.numbers()[node]
        )
        return self._on(node, script).stdout

    def _works(self) -> tuple[bool, str]:
        """All daemons up, all placement groups clean, and a new object written and read back."""
        done = self._on(self.ceph.monitors[0], PROBE, check=False)
        if not done.stdout:
            return False, done.stderr.strip()
        found, _end = json.JSONDecoder().raw_decode(done.stdout.strip())
        placement = found["pgmap"]
        clean = sum(
            state["count"] for state in placement.get("pgs_by_state", []) if state["state_name"] == "active+clean"
        )
        wanted = (len(self.ceph.monitors), len(self.ceph.monitors), sum(self.ceph.osds.values()), placement["num_pgs"])
        managers = found["mgrmap"]["available"] + found["mgrmap"]["num_standbys"]
        seen = (len(found["quorum"]), managers, found["osdmap"]["num_up_osds"], clean)
        names = ("monitors", "managers", "OSDs up", "PGs clean")
        words = ", ".join(f"{have} of {want} {name}" for have, want, name in zip(seen, wanted, names))
        return done.returncode == 0 and seen == wanted, f"{words}; {done.stderr.strip()}"

    def _each(self, nodes: list[str], act: Any) -> str:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return "".join(pool.map(act, nodes))

    def _on(self, node: str, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-F", str(self.state / "ssh_config"), node, "bash", "-s"]
        # A program that reads its standard input must not read what is left of the script.
        feed = f"set -eu\nexport CEPH_CONF={OWN_CONF}\n{START}{{\n{script}\n}} </dev/null\n"
        try:
            return run(argv, feed=feed, check=check, timeout=STEP_SECONDS)
        except LabError as error:
            raise LabError(f"Ceph on {node}: {error}") from error
