"""What systemd is told, over real datagram sockets."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import pytest

from modelcache.main.notify import READY, WATCHDOG, Notifier


def test_words_arrive_as_lines_at_a_path(tmp_path: Path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        Notifier.from_environment({"NOTIFY_SOCKET": address}).tell(READY, "STATUS=x")
        assert manager.recv(4096) == b"READY=1\nSTATUS=x"


def test_an_abstract_name_is_reached_too():
    name = f"modelcache-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"}).tell(WATCHDOG)
        assert manager.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_where_nobody_can_be_told_nothing_is(address: str):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    assert notifier == Notifier()
    notifier.tell(READY)


def test_a_manager_that_is_gone_is_no_reason_to_fail(tmp_path: Path):
    Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "none")}).tell(READY)


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "-1"}, 0.0),
        ({}, 0.0),
    ],
    ids=str,
)
def test_the_watchdog_is_this_process_own(environment: dict[str, str], watchdog_s: float):
    told = Notifier.from_environment({"NOTIFY_SOCKET": "/run/x", **environment})
    assert told.watchdog_s == watchdog_s
