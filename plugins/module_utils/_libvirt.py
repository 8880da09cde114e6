# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of libvirt: verbs in, plain data out, libvirt's errors as ours. The only file that imports the library.

`connect` answers within OPEN_SECONDS even when the daemon is frozen (START_SECONDS when it was only just started), and
an open connection fails KEEPALIVE_SECONDS after the daemon stopped to answer. Sizes are bytes everywhere; libvirt's KiB
stay in here.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Callable
from urllib.parse import urlsplit

from ._errors import DroverError, Failed, NotFound, TimedOut, Unreachable
from ._fields import Field
from ._hypervisor import CPU_MATCHES, JOBS, Domain, Pool, Secret, host_facts, state_words, version
from ._run import bounded, run

# Before 2.76, GLib has an allocator with a lock that a thread may hold as it ends, after Python has joined it. A child
# forked at that moment waits for this lock for ever; malloc's are made free in a child.
# https://docs.gtk.org/glib/running.html
os.environ.setdefault("G_SLICE", "always-malloc")
try:
    import libvirt
except ImportError:
    libvirt = None
else:
    # Without a handler the library writes each error to stderr, beside the module's JSON.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)

__all__ = ["LOCAL", "URI", "Domain", "Node", "Pool", "Secret", "connect", "libvirt", "translated"]

LOCAL = "qemu:///system"
URI = Field("uri", default=LOCAL)
OPEN_SECONDS = 8.0
# A daemon looks at what QEMU can do before its first answer; on a slow server that was seen to take 45 s.
START_SECONDS = 90.0
DAEMONS = ("libvirtd.service", "virtqemud.service")
CLOSE_SECONDS = 3.0
KEEPALIVE = (5, 3)  # a ping after 5 s of silence, 3 unanswered ones end the connection: about 20 s
READERS = 10
AGENT_SECONDS = 5  # an agent that hangs answers no more; libvirt would wait for it for ever
KEYS_SECONDS, CONSOLE_PAUSE = 5.0, 0.05

# What libvirt and QEMU say of a VM that does something else already.
BUSY = (
    "cannot acquire state change lock",
    "has active block job",
    "already in active block job",
    "in use by block job",
    "job is already running",
)

# What libvirt says when one of its hooks has refused, around the hook's own words (src/util/virhook.c, vircommand.c).
HOOK = re.compile(
    r"Hook script execution failed: .*?\) unexpected exit status \d+:\s*(?:drover: )?(\S.*?)\s*$", re.DOTALL
)

SHUTDOWN = {None: 0, "acpi": 1, "agent": 2}
INACTIVE, SECURE = 2, 1
ELEMENT = 2  # VIR_DOMAIN_METADATA_ELEMENT
STATS_STATE = 1  # VIR_DOMAIN_STATS_STATE
TRANSIENT, MANAGED_SAVE, AUTOSTART, SNAPSHOTS = 8, 256, 1024, 4096  # VIR_CONNECT_LIST_DOMAINS_*


def affect(live: bool, config: bool) -> int:
    """libvirt's flags for what a change is made on: the running guest, the definition, or both."""
    return int(live) | int(config) << 1


def _names(prefix: str) -> dict[int, str]:
    return {
        value: name[len(prefix) :]
        for name, value in vars(libvirt).items()
        if name.startswith(prefix) and isinstance(value, int)
    }


def _ours(error: Any, what: str, vm: str | None) -> DroverError:
    """Our exception for a libvirtError."""
    code = _names("VIR_ERR_").get(error.get_error_code(), str(error.get_error_code()))
    words = error.get_error_message() or str(error)
    details = {"code": code, "domain": vm, "libvirt": words}
    reason = HOOK.sub(r"\1", words)
    text = f"{what}: {reason}" if what else reason
    if any(busy in words for busy in BUSY):
        text += "; another operation is at work on it, so wait until that is done, and run this again"
    if code.startswith("NO_") and code not in {"NO_SUPPORT", "NO_CONNECT", "NO_MEMORY"}:
        return NotFound(text, **details)
    if code == "OPERATION_TIMEOUT":
        return TimedOut(text, **details)
    lost = error.get_error_domain() == libvirt.VIR_FROM_RPC or "client socket is closed" in words
    if lost or code in {"RPC", "NO_CONNECT"}:
        return Unreachable(f"{text} (the connection to libvirt was lost)", **details)
    return Failed(text, **details)


@contextmanager
def translated(what: str = "", vm: str | None = None) -> Iterator[None]:
    """Raise our errors in place of libvirt's; `what` says what was tried."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise _ours(error, what, vm) from None


class _EventLoop:
    """libvirt's event loop in a thread; without it there is no keepalive.

    The thread stands still while this process forks, because a lock of the library that it held at that moment
    would stay locked for ever in the child.
    """

    def __init__(self) -> None:
        self._locks()
        libvirt.virEventRegisterDefaultImpl()
        self._timer = libvirt.virEventAddTimeout(
            -1, lambda timer, _data: libvirt.virEventUpdateTimeout(timer, -1), None
        )
        threading.Thread(target=self._run, name="libvirt-events", daemon=True).start()
        # A child has no such thread, and may fork again: it gets fresh locks.
        os.register_at_fork(before=self._pause, after_in_parent=self._resume, after_in_child=self._locks)

    def _locks(self) -> None:
        self._gate = threading.Lock()
        self._turn = threading.Lock()

    def _run(self) -> None:
        while True:
            with self._gate:
                self._turn.acquire()
            try:
                libvirt.virEventRunDefaultImpl()
            finally:
                self._turn.release()

    def _pause(self) -> None:
        self._gate.acquire()
        libvirt.virEventUpdateTimeout(self._timer, 0)
        while not self._turn.acquire(timeout=0.05):
            libvirt.virEventUpdateTimeout(self._timer, 0)

    def _resume(self) -> None:
        self._turn.release()
        self._gate.release()


_LOOP: list[_EventLoop] = []


def _open(uri: str, readonly: bool, keepalive: bool) -> Any:
    if keepalive and not _LOOP:
        _LOOP.append(_EventLoop())
    connection = libvirt.openReadOnly(uri) if readonly else libvirt.open(uri)
    if keepalive:
        with suppress(libvirt.libvirtError):  # drivers without a daemon have none
            connection.setKeepAlive(*KEEPALIVE)
    return connection


def _probe(uri: str, readonly: bool) -> dict[str, str] | None:
    """None when the daemon answers, else its error; runs in a child because it may hang for ever."""
    try:
        _open(uri, readonly, keepalive=False).getLibVersion()
    except libvirt.libvirtError as error:
        return {"words": error.get_error_message()}
    return None


def host_of(uri: str) -> str:
    """The name of the machine that a libvirt URI means, for messages."""
    return urlsplit(uri).hostname or socket.gethostname()


@contextmanager
def connect(uri: str = LOCAL, readonly: bool = False, name: str | None = None, probe: bool = True) -> Iterator[Node]:
    """An open connection. `name` is the node's name in messages; no `probe` in a child that is bounded already.

    Raises NotFound (no library), Unreachable (no daemon, no network, no answer within OPEN_SECONDS; this machine's own
    daemon has START_SECONDS from its start).
    """
    name = name or host_of(uri)
    if libvirt is None:
        raise NotFound(f"the Python library of libvirt is missing on {name}; install the package python3-libvirt")
    if probe and not uri.startswith("test:"):
        answer = _ask(name, uri, readonly)
        while isinstance(answer, Unreachable) and uri == LOCAL and _starts():
            answer = _ask(name, uri, readonly)
        if isinstance(answer, Unreachable):
            raise Unreachable(
                f"hypervisor {name} does not answer: libvirt at {uri} was silent for {OPEN_SECONDS:g} s", node=name
            )
        if answer is not None:
            raise Unreachable(f"hypervisor {name} can't be reached at {uri}: {answer['words']}", node=name)
    with translated(f"open {uri}"):
        connection = _open(uri, readonly, keepalive=probe)
    try:
        yield Node(connection, name, readonly)
    finally:
        _close(connection)


def _ask(name: str, uri: str, readonly: bool) -> Any:
    return bounded({name: lambda: _probe(uri, readonly)}, OPEN_SECONDS)[name]


def _starts() -> bool:
    """Whether this machine's daemon was only just started, as systemd tells; a machine without systemd says no."""
    try:
        said = run(["systemctl", "show", "--property=ExecMainStartTimestampMonotonic", "--value", *DAEMONS], timeout=5)
    except DroverError:
        return False
    begun = max((int(line) for line in said.split() if line.isdecimal()), default=0) / 10**6
    return bool(begun) and time.monotonic() - begun < START_SECONDS


def _close(connection: Any) -> None:
    """Close, but leave the connection to the end of the process when the daemon does not answer (it is a call)."""
    closing = threading.Thread(target=_quietly, args=(connection.close,), daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
    if closing.is_alive():
        connection._o = None


def _quietly(call: Callable[[], object]) -> None:
    with suppress(libvirt.libvirtError):
        call()


class Node:
    """One open connection: what libvirt on one machine is asked and told."""

    def __init__(self, connection: Any, name: str, readonly: bool = False) -> None:
        self.connection = connection
        self.name = name
        self.readonly = readonly
        self._schema = threading.Lock()

    # ---- domains: read

    def domains(self, names: Iterable[str] | None = None, brief: bool = False) -> dict[str, Domain]:
        """VMs by name: all, or those of `names` that exist. Two rounds of parallel calls: five lists, then the XML.

        `brief` saves a round trip for each running VM: no job, and `xml` of a running VM is the live one.
        Definitions carry their secrets (a VNC password) unless the connection is read-only.
        """
        wanted = None if names is None else set(names)
        with translated(f"list the VMs of {self.name}"):
            calls: list[Callable[[], Any]] = [partial(self.connection.getAllDomainStats, STATS_STATE, 0)]
            calls += [partial(self._names_listed, flag) for flag in (TRANSIENT, AUTOSTART, MANAGED_SAVE, SNAPSHOTS)]
            stats, *lists = self._parallel(lambda call: call(), calls)
        found = [(dom, stat) for dom, stat in stats if wanted is None or dom.name() in wanted]
        domains = self._parallel(lambda item: self._domain(item[0], item[1], lists, brief), found)
        return {domain.name: domain for domain in domains if domain is not None}

    def _names_listed(self, flag: int) -> set[str]:
        return {found.name() for found in self.connection.listAllDomains(flag)}

    def domain(self, name: str) -> Domain | None:
        """One VM, or None."""
        with translated(f"read VM {name} on {self.name}", name):
            try:
                found = self.connection.lookupByName(name)
                state, reason = found.state()
                lists = [
                    {name} if not found.isPersistent() else set(),
                    {name} if found.autostart() else set(),
                    {name} if found.isPersistent() and found.hasManagedSaveImage() else set(),
                    {name} if found.snapshotNum(0) else set(),
                ]
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise
        return self._domain(found, {"state.state": state, "state.reason": reason}, lists, brief=False)

    def _domain(self, found: Any, stat: dict[str, Any], lists: list[set[str]], brief: bool) -> Domain | None:
        name = found.name()
        active = found.ID() >= 0
        transient, autostart, saved, kept = (name in group for group in lists)
        secure = 0 if self.readonly else SECURE
        with translated(f"read VM {name} on {self.name}", name):
            try:
                live = found.XMLDesc(secure) if active else None
                xml = live if live and (transient or brief) else found.XMLDesc(secure | INACTIVE)
                job = self._job(found) if active and not brief else None
            except libvirt.libvirtError as error:
                # It ended or was undefined since the list was read: that is not an error of the list.
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise
        state, reason = state_words(stat.get("state.state", 0), stat.get("state.reason", 0))
        return Domain(
            name=name,
            uuid=found.UUIDString(),
            id=found.ID() if active else None,
            state=state,
            reason=reason,
            persistent=not transient,
            autostart=autostart,
            has_managed_save=saved,
            xml=xml,
            live_xml=live,
            job=job,
            has_snapshots=kept,
        )

    @staticmethod
    def _job(found: Any) -> dict[str, Any] | None:
        try:
            stats = found.jobStats()
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            # A destination has no figures of the migration; the source alone has them.
            if code == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
                return {"type": "incoming"}
            if code in {libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID}:
                return None
            raise
        if stats.get("type", 0) == 0:
            return None
        return {**stats, "type": JOBS.get(stats.get("operation", 0), "other")}

    def _parallel(self, function: Callable[[Any], Any], things: Sequence[Any]) -> list[Any]:
        if len(things) < 2:
            return [function(thing) for thing in things]
        with ThreadPoolExecutor(max_workers=min(READERS, len(things))) as pool:
            return list(pool.map(function, things))

    # ---- domains: verbs

    def _do(self, text: str, name: str, call: Callable[[Any], Any]) -> Any:
        with translated(f"{text} VM {name} on {self.name}", name):
            return call(self.connection.lookupByName(name))

    def define(self, xml: str, validate: bool = True) -> None:
        """Define or redefine a VM; unless told otherwise libvirt checks the XML against its schema.

        One at a time: libxml2 sets up its schema types without a lock, and two first checks in one daemon at the same
        moment fail with "type 'unsignedInt' is not exported".
        """
        with translated(f"define a VM on {self.name}"), self._schema:
            self.connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE if validate else 0)

    def start(self, name: str, paused: bool = False) -> None:
        """Start it (from its saved memory, when it has a managed save)."""
        self._do("start", name, lambda vm: vm.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0))

    def shutdown(self, name: str, mode: str | None = None) -> None:
        """Ask the guest to power off, by `acpi`, by the `agent`, or as libvirt chooses; returns at once."""
        self._do("shut down", name, lambda vm: vm.shutdownFlags(SHUTDOWN[mode]))

    def destroy(self, name: str) -> None:
        """Take its power away."""
        self._do("power off", name, lambda vm: vm.destroy())

    def undefine(self, name: str, keep_state: bool = False) -> None:
        """Remove its definition, saved memory, and what libvirt knows of its snapshots; no disk.

        `keep_state` keeps the variables of UEFI and the keys of its TPM.
        """
        flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        if self.connection.getType() != "TEST":  # libvirt's test driver knows none of these
            kept = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
            gone = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_TPM
            flags |= libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | (kept if keep_state else gone)
        self._do("undefine", name, lambda vm: vm.undefineFlags(flags))

    def suspend(self, name: str) -> None:
        """Stop its CPUs."""
        self._do("pause", name, lambda vm: vm.suspend())

    def resume(self, name: str) -> None:
        """Let its CPUs run again."""
        self._do("resume", name, lambda vm: vm.resume())

    def set_autostart(self, name: str, on: bool) -> None:
        """Whether it starts with the node."""
        self._do("set autostart of", name, lambda vm: vm.setAutostart(int(on)))

    def remove_managed_save(self, name: str) -> None:
        """Drop its saved memory: the next start is a boot."""
        self._do("drop the saved memory of", name, lambda vm: vm.managedSaveRemove(0))

    def abort_job(self, name: str) -> None:
        """End its running job (a migration, a save)."""
        self._do("abort the job of", name, lambda vm: vm.abortJob())

    def job(self, name: str) -> dict[str, Any] | None:
        """Its running job: type incoming, outgoing or other, and libvirt's figures; None when there is none."""
        job: dict[str, Any] | None = self._do("read the job of", name, self._job)
        return job

    def metadata(self, name: str, uri: str, live: bool = False) -> str | None:
        """Our element of namespace `uri` in its metadata, or None."""
        try:
            xml = self._do("read the metadata of", name, lambda vm: vm.metadata(ELEMENT, uri, affect(live, not live)))
        except NotFound as error:
            if error.details["code"] == "NO_DOMAIN_METADATA":
                return None
            raise
        return str(xml)

    def set_metadata(
        self, name: str, prefix: str, uri: str, xml: str | None, live: bool = False, config: bool = True
    ) -> None:
        """Write our element, or remove it (None). It blocks for 30 s and fails while the VM is migrated."""
        flags = affect(live, config)
        self._do("write the metadata of", name, lambda vm: vm.setMetadata(ELEMENT, xml, prefix, uri, flags))

    def attach_device(self, name: str, xml: str, live: bool, config: bool) -> None:
        """Plug a device in."""
        self._do("attach a device to", name, lambda vm: vm.attachDeviceFlags(xml, affect(live, config)))

    def detach_device(self, name: str, xml: str, live: bool, config: bool) -> None:
        """Ask for a device to be unplugged; live, it is gone only when the guest has let it go."""
        self._do("detach a device from", name, lambda vm: vm.detachDeviceFlags(xml, affect(live, config)))

    def update_device(self, name: str, xml: str, live: bool, config: bool) -> None:
        """Change a device in place."""
        self._do("change a device of", name, lambda vm: vm.updateDeviceFlags(xml, affect(live, config)))

    def set_bandwidth(self, name: str, device: str, limits: Mapping[str, int]) -> None:
        """Limit a NIC (by its MAC address) of a running VM; kilobytes per second, the burst in KiB, 0 for no limit."""
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE
        self._do(f"limit NIC {device} of", name, lambda vm: vm.setInterfaceParameters(device, dict(limits), live))

    def set_disk_limits(self, name: str, target: str, limits: Mapping[str, int]) -> None:
        """Limit a disk of a running VM; requests and bytes a second by libvirt's names, 0 for no limit."""
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE
        self._do(f"limit disk {target} of", name, lambda vm: vm.setBlockIoTune(target, dict(limits), live))

    def set_memory(self, name: str, size: int, live: bool, config: bool, maximum: bool = False) -> None:
        """Set its memory (the balloon), or the maximum, in bytes; libvirt counts whole KiB."""
        flags = affect(live, config) | (libvirt.VIR_DOMAIN_MEM_MAXIMUM if maximum else 0)
        self._do("set the memory of", name, lambda vm: vm.setMemoryFlags(size // 1024, flags))

    def set_vcpus(self, name: str, count: int, live: bool, config: bool, maximum: bool = False) -> None:
        """Set the number of its vCPUs, or the maximum."""
        flags = affect(live, config) | (libvirt.VIR_DOMAIN_VCPU_MAXIMUM if maximum else 0)
        self._do("set the vCPUs of", name, lambda vm: vm.setVcpusFlags(count, flags))

    def set_cpu_quota(self, name: str, period: int, quota: int) -> None:
        """Limit each vCPU of a running VM to `quota` of each `period`, both in microseconds; -1 for no limit."""
        limit = {"vcpu_period": period, "vcpu_quota": quota}
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE
        self._do("limit the vCPUs of", name, lambda vm: vm.setSchedulerParametersFlags(limit, live))

    def block_resize(self, name: str, target: str, size: int) -> None:
        """Tell a running guest the new size, in bytes, of its disk `target` (vda)."""
        flags = libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES
        self._do(f"resize disk {target} of", name, lambda vm: vm.blockResize(target, size, flags))

    def block_sizes(self, name: str, target: str) -> dict[str, int]:
        """Bytes of a disk: `capacity` (what the guest sees), `allocation`, `physical` (of its file or LUN)."""
        found = self._do(f"measure disk {target} of", name, lambda vm: vm.blockInfo(target, 0))
        return dict(zip(("capacity", "allocation", "physical"), found))

    def start_block_copy(self, name: str, target: str, xml: str, rate: int = 0) -> None:
        """Begin to copy a running VM's disk into what `xml` describes, which is there; bytes per second, 0: no limit.

        The copy then follows the disk until `pivot` or `abort_block_job`.
        """
        flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        params = {libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: rate} if rate else {}
        self._do(f"copy disk {target} of", name, lambda vm: vm.blockCopy(target, xml, params, flags))

    def pull(self, name: str, target: str) -> None:
        """Begin to take into a running VM's disk what it is based on; then it is based on nothing."""
        self._do(f"flatten disk {target} of", name, lambda vm: vm.blockPull(target, 0, 0))

    def block_job(self, name: str, target: str) -> dict[str, int]:
        """Bytes of the job on a disk: `cur` of `end`; empty when there is none."""
        job = self._do(f"read the job on disk {target} of", name, lambda vm: vm.blockJobInfo(target, 0))
        return dict(job or {})

    def pivot(self, name: str, target: str) -> None:
        """Let the VM use the copy of its disk from now on."""
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        self._do(f"change to the copy of disk {target} of", name, lambda vm: vm.blockJobAbort(target, flags))

    def abort_block_job(self, name: str, target: str) -> None:
        """End the job on a disk; the VM keeps the disk that it has."""
        self._do(f"end the job on disk {target} of", name, lambda vm: vm.blockJobAbort(target, 0))

    # ---- snapshots

    def version(self) -> int:
        """libvirt's version as its library counts: 11003000 for 11.3.0."""
        with translated(f"ask {self.name} for its version"):
            return int(self.connection.getLibVersion())

    def snapshots(self, name: str) -> list[tuple[str, bool]]:
        """The XML of each snapshot that libvirt knows of a VM, and whether it is the current one."""

        def call(vm: Any) -> list[tuple[str, bool]]:
            return [(one.getXMLDesc(0), bool(one.isCurrent(0))) for one in vm.listAllSnapshots(0)]

        found: list[tuple[str, bool]] = self._do("list the snapshots of", name, call)
        return found

    def create_snapshot(self, name: str, xml: str, disks_only: bool, running: bool) -> None:
        """Make a snapshot of all its disks, or of none; `disks_only` leaves out the memory of a running VM."""
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if disks_only else 0
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE if running else 0
        self._do("make a snapshot of", name, lambda vm: vm.snapshotCreateXML(xml, flags))

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Remove one; what it holds for others is merged. It lasts, and goes on in the daemon when the caller ends."""
        words = f"delete snapshot {snapshot} of"
        self._do(words, name, lambda vm: vm.snapshotLookupByName(snapshot, 0).delete(0))

    def revert(self, name: str, snapshot: str, start: bool) -> None:
        """Set a VM back; `start` boots one of whose memory the snapshot holds nothing."""
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING if start else 0
        words = f"set back to snapshot {snapshot}"
        self._do(words, name, lambda vm: vm.revertToSnapshot(vm.snapshotLookupByName(snapshot, 0), flags))

    # ---- the guest's agent

    def freeze(self, name: str) -> int:
        """Ask the guest to write out and hold all its file systems; their number. Raises TimedOut and Failed.

        From then on libvirt waits AGENT_SECONDS for this guest's agent, not for ever.
        """

        def call(vm: Any) -> int:
            vm.agentSetResponseTimeout(AGENT_SECONDS, 0)
            return int(vm.fsFreeze(None, 0))

        return int(self._do("freeze the file systems of", name, call))

    def thaw(self, name: str) -> int:
        """Let them go on; how many were held. Raises as `freeze` does."""
        return int(self._do("thaw the file systems of", name, lambda vm: vm.fsThaw(None, 0)))

    def list_file_systems(self, name: str) -> int:
        """How many file systems the guest tells of; a guest that holds them refuses to. Raises as `freeze` does."""
        return len(self._do("list the file systems of", name, lambda vm: vm.fsInfo(0)) or ())

    def set_guest_time(self, name: str, seconds: int) -> None:
        """Set the guest's clock, and its hardware clock, to so many seconds since the epoch. Raises as `freeze`."""

        def call(vm: Any) -> None:
            vm.agentSetResponseTimeout(AGENT_SECONDS, 0)
            vm.setTime({"seconds": seconds, "nseconds": 0}, 0)

        self._do("set the clock of", name, call)

    def guest_time(self, name: str) -> int:
        """The guest's clock in seconds since the epoch. Raises as `freeze` does."""
        return int(self._do("read the clock of", name, lambda vm: vm.getTime(0))["seconds"])

    # ---- backups

    def begin_backup(self, name: str, xml: str, checkpoint: str | None, made: bool = False) -> None:
        """Have QEMU copy disks as they are at this moment, and note from here on what changes (the checkpoint).

        `made`: the files are there already, empty.
        """
        flags = libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL if made else 0
        self._do("back up", name, lambda vm: vm.backupBegin(xml, checkpoint, flags))

    def backup(self, name: str) -> str | None:
        """The description of the backup that QEMU makes now, or None."""
        try:
            return str(self._do("read the backup of", name, lambda vm: vm.backupGetXMLDesc(0)))
        except (Failed, NotFound) as error:
            if error.details["code"] in {"NO_DOMAIN_BACKUP", "OPERATION_INVALID"}:  # none, or the VM is off
                return None
            raise

    def ended_job(self, name: str) -> dict[str, Any]:
        """libvirt's figures of the last job that came to an end; asking for them forgets them."""
        flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED
        return dict(self._do("read the last job of", name, lambda vm: vm.jobStats(flags)))

    def limit_block_job(self, name: str, target: str, rate: int) -> None:
        """Limit the job on a disk, in bytes per second."""
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        self._do(f"limit the job on disk {target} of", name, lambda vm: vm.blockJobSetSpeed(target, rate, flags))

    def checkpoints(self, name: str) -> list[str]:
        """The names of its checkpoints."""
        return [one.getName() for one in self._do("list the checkpoints of", name, lambda vm: vm.listAllCheckpoints())]

    def checkpoint(self, name: str, checkpoint: str, sizes: bool = False) -> str:
        """The description of a checkpoint, with `sizes` how much has changed since; a VM that is off has no sizes."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE if sizes else 0
        look = f"read checkpoint {checkpoint} of"
        return str(self._do(look, name, lambda vm: vm.checkpointLookupByName(checkpoint).getXMLDesc(flags)))

    def adopt_checkpoint(self, name: str, xml: str) -> None:
        """Let libvirt know again of a checkpoint whose bitmaps are in the VM's disks. Raises Failed without them."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
        self._do("take over a checkpoint of", name, lambda vm: vm.checkpointCreateXML(xml, flags))

    def delete_checkpoint(self, name: str, checkpoint: str, known_only: bool = False) -> None:
        """Forget a checkpoint; `known_only` leaves what is in the disks (it may be broken, after a power cut)."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY if known_only else 0
        forget = f"delete checkpoint {checkpoint} of"
        self._do(forget, name, lambda vm: vm.checkpointLookupByName(checkpoint).delete(flags))

    # ---- storage pools

    def networks(self) -> dict[str, str | None]:
        """All of its virtual networks, active or not, each with the bridge that it plugs into."""
        with translated(f"list the networks of {self.name}"):
            return {network.name(): _bridge_of(network) for network in self.connection.listAllNetworks(0)}

    def pools(self) -> dict[str, Pool]:
        """All storage pools by name."""
        with translated(f"list the storage pools of {self.name}"):
            found = self.connection.listAllStoragePools(0)
            return {pool.name: pool for pool in self._parallel(_pool_of, found)}

    def pool(self, name: str) -> Pool | None:
        """One storage pool, or None."""
        with translated(f"read pool {name} on {self.name}"):
            try:
                return _pool_of(self.connection.storagePoolLookupByName(name))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                    return None
                raise

    def pool_kinds(self) -> str | None:
        """XML of the kinds of pools that libvirt has a driver for, or lacks one; None where it does not say."""
        with translated(f"read the kinds of pools of {self.name}"):
            try:
                return str(self.connection.getStoragePoolCapabilities(0))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                    return None
                raise

    def _pool(self, text: str, name: str, call: Callable[[Any], Any]) -> Any:
        with translated(f"{text} pool {name} on {self.name}"):
            return call(self.connection.storagePoolLookupByName(name))

    def define_pool(self, xml: str) -> None:
        """Define or redefine a pool."""
        with translated(f"define a pool on {self.name}"):
            self.connection.storagePoolDefineXML(xml, 0)

    def keep_pool(self, name: str) -> None:
        """Give a pool that would be gone when it is deactivated a definition."""
        pool = self.pool(name)
        if pool is not None:
            self.define_pool(pool.xml)

    def build_pool(self, name: str) -> None:
        """Make the folder of a dir pool where it is missing."""
        self._pool("build", name, lambda pool: pool.build(0))

    def start_pool(self, name: str) -> None:
        """Activate it."""
        self._pool("start", name, lambda pool: pool.create(0))

    def stop_pool(self, name: str) -> None:
        """Deactivate it (libvirt's `destroy`); its data stays."""
        self._pool("stop", name, lambda pool: pool.destroy())

    def undefine_pool(self, name: str) -> None:
        """Remove its definition; its data stays."""
        self._pool("undefine", name, lambda pool: pool.undefine())

    def set_pool_autostart(self, name: str, on: bool) -> None:
        """Whether it is activated with the node."""
        self._pool("set autostart of", name, lambda pool: pool.setAutostart(int(on)))

    # ---- secrets

    def secrets(self) -> list[Secret]:
        """All secrets, without their values."""
        with translated(f"list the secrets of {self.name}"):
            found = self.connection.listAllSecrets(0)
            return [Secret.of(one.XMLDesc(0), one.usageType(), one.usageID()) for one in found]

    def _secret(self, text: str, uuid: str, call: Callable[[Any], Any]) -> Any:
        with translated(f"{text} secret {uuid} on {self.name}"):
            return call(self.connection.secretLookupByUUIDString(uuid))

    def define_secret(self, xml: str) -> None:
        """Define or redefine a secret; the value is set apart."""
        with translated(f"define a secret on {self.name}"):
            self.connection.secretDefineXML(xml, 0)

    def secret_value(self, uuid: str) -> bytes | None:
        """The value, or None when it has none. Raises Failed for a private secret: nobody may read it."""
        try:
            return bytes(self._secret("read", uuid, lambda secret: secret.value(0)))
        except NotFound as error:
            if error.details["code"] == "NO_SECRET" and self.has_secret(uuid):
                return None
            raise

    def password(self, kind: str, usage: str) -> str:
        """What the secret of this type and usage name holds. Raises NotFound, and Failed for a private one."""
        found = next((one for one in self.secrets() if (one.type, one.usage) == (kind, usage)), None)
        value = None if found is None else self.secret_value(found.uuid)
        if value is None:
            raise NotFound(f"{self.name} has no secret {usage} of type {kind} with a value; see drover.kvm.secret")
        return value.decode()

    def has_secret(self, uuid: str) -> bool:
        """Whether a secret of this UUID is defined."""
        return any(secret.uuid == uuid for secret in self.secrets())

    def set_secret_value(self, uuid: str, value: bytes) -> None:
        """Store the value."""
        self._secret("set the value of", uuid, lambda secret: secret.setValue(value, 0))

    def undefine_secret(self, uuid: str) -> None:
        """Remove the secret and its value."""
        self._secret("undefine", uuid, lambda secret: secret.undefine())

    # ---- consoles

    def console(self, name: str, keys: bytes, enough: Callable[[bytes], bool], seconds: float) -> bytes:
        """What the serial console of a running VM says until it is `enough`, at most for so many `seconds`.

        `keys` are typed at once and every KEYS_SECONDS: a guest that boots misses the first ones. Raises Failed where
        somebody is at the console, or there is none.
        """
        stream, said, start, typed = self.connection.newStream(libvirt.VIR_STREAM_NONBLOCK), b"", time.monotonic(), 0
        self._do("open the console of", name, lambda vm: vm.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_SAFE))
        with translated(f"read the console of {name} on {self.name}", name):
            try:
                while not enough(said) and time.monotonic() - start < seconds:
                    if time.monotonic() - start >= typed * KEYS_SECONDS:
                        stream.send(keys)
                        typed += 1
                    piece = stream.recv(65536)
                    if piece == b"":  # the VM has ended
                        break
                    said += piece if isinstance(piece, bytes) else b""
                    time.sleep(0 if isinstance(piece, bytes) else CONSOLE_PAUSE)
            finally:
                with suppress(libvirt.libvirtError):  # it has ended with the VM
                    stream.abort()
        return said

    # ---- the machine

    def host(self) -> dict[str, Any]:
        """What libvirt says of the machine: names, versions, `memory` in bytes, `threads`, and `host_facts`.

        Free memory is what no process uses; caches, which the kernel gives back, count as free. libvirt refuses this
        on a read-only connection.
        """
        with translated(f"read the capabilities of {self.name}"):
            conn = self.connection
            return {
                **host_facts(conn.getCapabilities(), self._domain_capabilities()),
                "hostname": conn.getHostname(),
                "libvirt_version": version(conn.getLibVersion()),
                "qemu_version": self._qemu_version(),
                "memory": self._memory(),
                "threads": conn.getInfo()[2],
            }

    def _qemu_version(self) -> str | None:
        try:
            return version(self.connection.getVersion())
        except libvirt.libvirtError:  # libvirt is there and QEMU is not
            return None

    def _memory(self) -> dict[str, int]:
        try:
            stats = self.connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
        except libvirt.libvirtError:  # the test driver has none
            return {"total": self.connection.getInfo()[1] * 2**20, "free": self.connection.getFreeMemory()}
        free = sum(stats.get(name, 0) for name in ("free", "buffers", "cached"))
        return {"total": stats["total"] * 1024, "free": free * 1024}

    def _domain_capabilities(self) -> str | None:
        # Of some distributions only q35 has UEFI, and libvirt speaks of pc unless told otherwise.
        for machine in ("q35", None):
            try:
                return str(self.connection.getDomainCapabilities(None, None, machine, None, 0))
            except libvirt.libvirtError as error:  # no such machine, no QEMU here, or a driver that has none
                if error.get_error_code() == libvirt.VIR_ERR_OPERATION_DENIED:
                    raise
        return None

    def compare_cpu(self, xml: str, virt: str | None = None, machine: str | None = None) -> str:
        """How this machine's CPU relates to the one of `xml`: identical, or superset (it can run both).

        Raises Failed when it can't run it, with libvirt's words, which name the features that are missing.
        """
        flags = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
        with translated(f"compare a CPU with that of {self.name}"):
            return CPU_MATCHES[self.connection.compareHypervisorCPU(None, None, machine, virt, xml, flags)]

    def check_host_cpu(self, xml: str) -> None:
        """See that this machine's own CPU has all that `xml` has, for VMs that see the CPU of their machine.

        One of a newer libvirt, which names more of the same CPU, has it too; the way back is compared by itself.
        Raises Failed when something is missing.
        """
        with translated(f"compare a CPU with that of {self.name}"):
            found = CPU_MATCHES.get(self.connection.compareCPU(xml, 0), "incompatible")
        if found == "incompatible":
            words = "it lacks some of the CPU of the machine that the VM sees (host-passthrough)"
            raise Failed(f"{self.name}: {words}", libvirt=words)

    def baseline_cpu(self, cpus: Sequence[str], virt: str | None = None, migratable: bool = True) -> str:
        """The CPU that all machines whose CPUs are given can run."""
        flags = libvirt.VIR_CONNECT_BASELINE_CPU_MIGRATABLE if migratable else 0
        with translated(f"compute a CPU baseline on {self.name}"):
            return str(self.connection.baselineHypervisorCPU(None, None, None, virt, list(cpus), flags))


def _bridge_of(network: Any) -> str | None:
    try:
        return str(network.bridgeName())
    except libvirt.libvirtError:  # a network of another kind, such as a pool of host devices
        return None


def _pool_of(pool: Any) -> Pool:
    return Pool.of(pool.XMLDesc(0), pool.info()[0], bool(pool.isPersistent()), bool(pool.autostart()))
