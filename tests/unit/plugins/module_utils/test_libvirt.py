# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of libvirt: on its test driver, on sockets that never answer, and on a private libvirtd that is frozen."""

from __future__ import annotations

import ctypes
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _libvirt
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, NotFound, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect, libvirt
from ansible_collections.drover.kvm.plugins.module_utils._migration.ends import End
from ansible_collections.drover.kvm.plugins.module_utils._run import bounded
from ansible_collections.drover.kvm.tests.unit import libvirt_server, rpc

pytestmark = pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt")
needs_daemon = pytest.mark.skipif(bool(libvirt_server.missing()), reason=str(libvirt_server.missing()))
VM = "<domain type='test'><name>{}</name><memory>65536</memory><os><type>hvm</type></os></domain>"


@pytest.fixture
def node(tmp_path):
    path = tmp_path / "node.xml"
    path.write_text("<node/>", encoding="utf-8")
    with connect(f"test://{path}") as node:
        yield node


@pytest.fixture
def calls(monkeypatch):
    return rpc.counted(monkeypatch)


def test_reading_many_vms_takes_five_lists_and_one_xml_each(node, calls):
    for number in range(50):
        node.define(VM.format(f"vm{number}"))
    calls.clear()
    assert len(node.domains(brief=True)) == 50
    assert calls == {"virConnectGetAllDomainStats": 1, "virConnectListAllDomains": 4, "virDomainGetXMLDesc": 50}
    calls.clear()
    assert set(node.domains(["vm1", "vm2", "nobody"])) == {"vm1", "vm2"}
    assert calls["virDomainGetXMLDesc"] == 2


def test_a_vm_through_its_life(node):
    node.define(VM.format("web1"))
    assert node.domain("web1").state == "stopped" and not node.domain("web1").active
    node.set_autostart("web1", True)
    node.start("web1")
    running = node.domains()["web1"]
    assert (running.state, running.autostart, running.persistent) == ("running", True, True)
    assert running.live_xml is not None and node.domain("web1") == running
    node.suspend("web1")
    assert (node.domain("web1").state, node.domain("web1").reason) == ("paused", "user")
    node.resume("web1")
    node.destroy("web1")
    assert (node.domain("web1").state, node.domain("web1").reason) == ("stopped", "destroyed")
    node.undefine("web1")
    assert node.domain("web1") is None and node.domains() == {}


def test_definitions_are_checked_one_at_a_time(node, monkeypatch):
    """Two first checks at once fail in libvirt (3 of 200 fresh daemons that sixteen threads asked)."""
    inside, most = [], []

    def define(xml, _flags):
        inside.append(xml)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(xml)

    monkeypatch.setattr(node.connection, "defineXMLFlags", define)
    threads = [threading.Thread(target=node.define, args=(VM.format(f"vm{number}"),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_metadata_of_the_definition_and_of_the_running_vm(node):
    node.define(VM.format("web1"))
    node.start("web1")
    node.set_metadata("web1", "drover", "urn:drover:test", "<mark id='1'/>", live=True, config=False)
    assert node.metadata("web1", "urn:drover:test") is None
    assert "mark" in node.metadata("web1", "urn:drover:test", live=True)
    node.set_metadata("web1", "drover", "urn:drover:test", None, live=True, config=False)
    assert node.metadata("web1", "urn:drover:test", live=True) is None


def test_sizes_are_bytes(node):
    node.define(VM.format("web1"))
    node.set_memory("web1", 32 * 2**20, live=False, config=True)
    assert "<currentMemory unit='KiB'>32768</currentMemory>" in node.domain("web1").xml


def test_errors_name_the_vm_the_act_and_the_code(node, capfd):
    with pytest.raises(NotFound, match="start VM nobody on .*not found") as caught:
        node.start("nobody")
    assert caught.value.details["code"] == "NO_DOMAIN" and caught.value.details["domain"] == "nobody"
    with pytest.raises(Failed) as refused:
        node.define("<domain/>")
    assert refused.value.details["code"] in {"XML_ERROR", "XML_INVALID_SCHEMA", "OS_TYPE", "INTERNAL_ERROR"}
    assert capfd.readouterr() == ("", "")


def test_a_vm_that_is_gone_while_the_list_is_read_is_left_out(node, monkeypatch):
    node.define(VM.format("web1"))
    node.define(VM.format("web2"))
    gone = node.connection.lookupByName("web2")
    real = libvirt.virDomain.XMLDesc

    def vanishing(self, flags=0):
        if self.name() == "web2" and gone.isPersistent():
            gone.undefine()
        return real(self, flags)

    monkeypatch.setattr(libvirt.virDomain, "XMLDesc", vanishing)
    monkeypatch.setattr(libvirt.virDomain, "isPersistent", lambda self: self.name() in node_names(node))
    assert set(node.domains(brief=True)) == {"web1"}


def node_names(node):
    return {found.name() for found in node.connection.listAllDomains(0)}


def test_a_daemon_that_hangs_is_reported_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(_libvirt, "OPEN_SECONDS", 1.0)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(tmp_path / "frozen"))
        frozen.listen(8)
        start = time.monotonic()
        with (
            pytest.raises(Unreachable, match="hypervisor hv1 does not answer"),
            connect(f"qemu+unix:///system?socket={tmp_path}/frozen", name="hv1"),
        ):
            pytest.fail("there is nobody to talk to")
        assert time.monotonic() - start < 8


def test_no_daemon_is_reported_at_once(tmp_path):
    uri = f"qemu+unix:///system?socket={tmp_path}/nobody"
    with pytest.raises(Unreachable, match="hypervisor hv1 can't be reached.*No such file"), connect(uri, name="hv1"):
        pytest.fail("there is nobody to talk to")


def test_a_missing_library_names_the_package(monkeypatch):
    monkeypatch.setattr(_libvirt, "libvirt", None)
    with pytest.raises(NotFound, match="install the package python3-libvirt"), connect("test:///default"):
        pytest.fail("there is no library")


def test_glib_has_its_memory_from_malloc():
    """Its own allocator has a lock: 2 of 400 children hung that were forked after four threads had used libvirt."""
    glib, libc = ctypes.CDLL("libglib-2.0.so.0"), ctypes.CDLL(None)
    glib.g_slice_alloc.restype = ctypes.c_void_p
    glib.g_slice_alloc.argtypes = libc.malloc_usable_size.argtypes = [ctypes.c_size_t]
    assert all(64 <= libc.malloc_usable_size(glib.g_slice_alloc(64)) < 128 for dummy in range(20))


def test_children_may_open_connections_while_this_process_has_one(node):
    """The event loop stands still during a fork, so no child waits for a lock that nobody will give back."""

    def names() -> list[str]:
        with connect("test:///default", probe=False) as other:
            return sorted(other.domains())

    for _round in range(30):
        assert bounded({"a": names, "b": names}, 20) == {"a": ["test"], "b": ["test"]}
        node.domains()


@pytest.fixture(scope="module")
def daemon():
    with libvirt_server.private_libvirtd() as running:
        yield running


@needs_daemon
def test_the_facts_of_a_real_host(daemon):
    with connect(daemon.uri(), name="hv1") as node:
        host = node.host()
        assert host["uuid"] == "00000000-0000-4000-8000-0000000000a1" and host["arch"]
        assert 0 < host["memory"]["free"] < host["memory"]["total"] and host["threads"] > 0
        assert node.domains() == {} and node.pools() == {} and node.domain("nobody") is None


@needs_daemon
def test_a_real_host_refuses_what_only_a_newer_qemu_has(daemon):
    """A node of Debian 12 beside one of Debian 13: there is no way back unless the machine type allows it."""
    with connect(daemon.uri(), name="hv1") as node:
        end, host = End(node), node.host()
        newest = max(one for one in host["machine_types"] if one.startswith("pc-q35-"))
        need = {"arch": "x86_64", "machine": newest, "virt_type": "qemu", "loader": None, "tpm": False}
        assert end.refuses_machine(need) == {}
        # The year 2031.
        late = {**need, "machine": "pc-q35-15.0"}
        assert "pc-q35-15.0" in end.refuses_machine(late)["machine"] and end.loaders(late) == []


@needs_daemon
@pytest.mark.skipif(not (Path("/usr/share/OVMF").exists() and shutil.which("swtpm")), reason="needs ovmf and swtpm")
def test_a_real_host_tells_its_firmware_and_its_tpm(daemon):
    need = {"arch": "x86_64", "machine": "q35", "virt_type": "qemu", "tpm": True}
    with connect(daemon.uri(), name="hv1") as node:
        end = End(node)
        assert node.host()["firmware"] == ["efi", "tpm"]
        known = [path for path in end.loaders(need) if Path(path).exists()]
        assert known and end.refuses_machine({**need, "loader": known[0]}) == {}
        assert end.refuses_machine({**need, "loader": "/srv/none.fd"}) == {"firmware": "it has no UEFI /srv/none.fd"}


@needs_daemon
def test_a_pool_on_a_real_folder_keeps_its_files(daemon, tmp_path):
    folder = tmp_path / "media"
    with connect(daemon.uri(), name="hv1") as node:
        node.define_pool(f"<pool type='dir'><name>media</name><target><path>{folder}</path></target></pool>")
        node.build_pool("media")
        node.start_pool("media")
        (folder / "a.iso").write_bytes(b"x" * 1000)
        found = node.pool("media")
        assert (found.state, found.type, found.path) == ("active", "dir", str(folder)) and found.available > 0
        node.stop_pool("media")
        node.build_pool("media")
        node.undefine_pool("media")
        assert node.pool("media") is None and (folder / "a.iso").stat().st_size == 1000


@needs_daemon
def test_a_daemon_that_freezes_later_does_not_hold_the_program(daemon, tmp_path):
    """Keepalive ends the call, and closing the connection, which is a call too, does not hold up the end."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from ansible_collections.drover.kvm.plugins.module_utils import _libvirt\n"
        "_libvirt.KEEPALIVE = (1, 2)\n"
        f"with _libvirt.connect({daemon.uri()!r}, name='hv1') as node:\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    try:\n"
        "        node.secrets()\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error, flush=True)\n",
        encoding="utf-8",
    )
    root = str(libvirt_server.COLLECTIONS)
    command = [sys.executable, str(program)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}, **pipes) as process:
        assert process.stdout.readline() == "open\n"
        daemon.freeze()
        start = time.monotonic()
        try:
            words, _nothing = process.communicate("go\n", timeout=60)
        finally:
            daemon.thaw()
    assert words.startswith("Unreachable ") and time.monotonic() - start < 30, (words, process.returncode)


@pytest.mark.parametrize(("age", "asked"), [(10, 3), (500, 1), (None, 1)])
def test_a_daemon_that_was_only_just_started_is_waited_for(monkeypatch, age, asked):
    answers = [Unreachable("silent"), Unreachable("silent"), {"words": "no driver"}]
    seen = []

    def ask(name, uri, readonly):
        seen.append(uri)
        return answers[len(seen) - 1]

    def systemctl(argv, timeout):
        if age is None:
            raise NotFound("no systemd here")
        return f"0\n{int((time.monotonic() - age) * 10**6)}\n"

    monkeypatch.setattr(_libvirt, "_ask", ask)
    monkeypatch.setattr(_libvirt, "run", systemctl)
    words = "no driver" if asked == 3 else "was silent for 8 s"
    with pytest.raises(Unreachable, match=words), connect(_libvirt.LOCAL, name="hv1"):
        pass
    assert len(seen) == asked
    seen.clear()
    with pytest.raises(Unreachable, match="was silent"), connect("qemu+ssh://hv2/system", name="hv2"):
        pass


HOOKED = (
    "Hook script execution failed: internal error: Child process (LC_ALL=C PATH=/usr/bin /etc/libvirt/hooks/qemu.d/own "
    "web1 migrate begin -) unexpected exit status 1: "
)
CORDONED = "web1 refused: this node is cordoned since 8:00 by me (disk (swap)); undrain_node ends it"


@pytest.mark.parametrize(
    "said, words",
    [
        (f"{HOOKED}drover: {CORDONED}\n", CORDONED),
        (f"{HOOKED}not today", "not today"),
        (HOOKED, HOOKED),
        ("internal error: it failed", "internal error: it failed"),
    ],
)
def test_what_a_hook_refused_is_told_in_its_own_words(said, words):
    class Hooked(libvirt.libvirtError):
        def get_error_code(self):
            return libvirt.VIR_ERR_HOOK_SCRIPT_FAILED

        def get_error_domain(self):
            return libvirt.VIR_FROM_HOOK

        def get_error_message(self):
            return said

    with pytest.raises(Failed) as told, _libvirt.translated("moving"):
        raise Hooked("")
    assert told.value.message == f"moving: {words}" and told.value.details["libvirt"] == said


@pytest.mark.parametrize(
    "words",
    [
        "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainSave)",
        "Requested operation is not valid: domain has active block job",
        "unable to execute QEMU command 'block_resize': Node 'd' is busy: block device is in use by block job: backup",
    ],
)
def test_a_vm_that_does_something_else_is_no_riddle(words):
    class Busy(libvirt.libvirtError):
        def get_error_code(self):
            return libvirt.VIR_ERR_OPERATION_INVALID

        def get_error_message(self):
            return words

        def get_error_domain(self):
            return libvirt.VIR_FROM_QEMU

    with pytest.raises(Failed, match="another operation is at work on it") as caught, _libvirt.translated("grow it"):
        raise Busy(words)
    assert caught.value.message.startswith(f"grow it: {words}") and caught.value.details["libvirt"] == words
