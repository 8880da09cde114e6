# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What waits in the queue is begun only while somebody is there who asked for it."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._migration import client
from ansible_collections.drover.kvm.plugins.module_utils._migration.client import HEARTBEAT_SECONDS, Client, unheard
from ansible_collections.drover.kvm.plugins.module_utils._migration.site import Site
from ansible_collections.drover.kvm.plugins.module_utils._peers import Cluster


@pytest.fixture
def run(tmp_path):
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()
    return Client(Site(Cluster("lab", "hv1", {}, {})), threading.Semaphore(1), heartbeat)


def test_a_pipe_that_nobody_reads_any_more():
    reader, writer = os.pipe()
    try:
        assert not unheard(writer)
        os.write(writer, b"what was not read yet")
        os.close(reader)
        assert unheard(writer)
    finally:
        os.close(writer)


def test_a_socket_whose_other_end_is_gone():
    one, other = socket.socketpair()
    with one:
        with other:
            assert not unheard(one.fileno())
        assert unheard(one.fileno())


def test_a_fresh_heartbeat_and_a_reader_are_both_needed(run, monkeypatch):
    assert run.beating()
    monkeypatch.setattr(client, "unheard", lambda: True)
    assert not run.beating()


def test_a_heartbeat_that_is_old_or_gone(run):
    then = time.time() - HEARTBEAT_SECONDS - 1
    os.utime(run.heartbeat, (then, then))
    assert not run.beating()
    run.heartbeat.unlink()
    assert not run.beating()


def test_a_clock_that_was_set_back_gives_a_dead_controller_no_hour(run, monkeypatch):
    """F-26: the file is of the node's clock, never of the controller's; the connection needs none."""
    later = time.time() + 3600
    os.utime(run.heartbeat, (later, later))
    assert run.beating()
    monkeypatch.setattr(client, "unheard", lambda: True)
    assert not run.beating()


def test_without_a_heartbeat_nobody_asked(run, monkeypatch):
    run.heartbeat = None
    monkeypatch.setattr(client, "unheard", lambda: True)
    assert run.beating()
