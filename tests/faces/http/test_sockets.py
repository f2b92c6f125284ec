"""Binding the agent's sockets: never over somebody who answers, always over who died."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from modelcache.errors import InvalidConfig
from modelcache.faces.http.sockets import bind_tcp, bound_unix


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.sock"


def test_a_socket_goes_with_its_agent(path: Path):
    with bound_unix(path):
        assert path.stat().st_mode & 0o777 == 0o660
    assert not path.exists()


def test_the_mode_is_the_same_whatever_the_umask(path: Path):
    before = os.umask(0)
    try:
        with bound_unix(path):
            assert path.stat().st_mode & 0o777 == 0o660
    finally:
        os.umask(before)


def test_what_a_killed_agent_left_is_replaced(path: Path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert path.exists()
    with bound_unix(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.accept()[0].close()


def test_one_that_somebody_answers_on_is_left_alone(path: Path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(InvalidConfig, match="another agent answers on"), bound_unix(path):
            pass
        assert path.exists()


def test_a_second_agent_is_kept_out_even_before_the_first_listens(path: Path):
    with bound_unix(path):
        path.unlink()  # as if it had not got so far
        with pytest.raises(InvalidConfig, match="another agent"), bound_unix(path):
            pass


def test_a_file_that_is_no_socket_is_never_removed(path: Path):
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(InvalidConfig, match="is no socket"), bound_unix(path):
        pass
    assert path.read_text() == "mine"


def test_a_link_to_a_file_is_never_followed(path: Path, tmp_path: Path):
    path.parent.mkdir()
    target = tmp_path / "precious"
    target.write_text("mine")
    path.symlink_to(target)
    with pytest.raises(InvalidConfig, match="is no socket"), bound_unix(path):
        pass
    assert target.read_text() == "mine"


def test_a_path_that_linux_cannot_take_is_refused(tmp_path: Path):
    with (
        pytest.raises(InvalidConfig, match="longer than the 107 bytes"),
        bound_unix(tmp_path / ("x" * 120)),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InvalidConfig, match=r"cannot listen on agent\.socket"),
        bound_unix(tmp_path / "file" / "agent.sock"),
    ):
        pass


def test_an_address_in_use_is_named():
    with (
        bind_tcp("127.0.0.1", 0) as first,
        pytest.raises(InvalidConfig, match="Address already in use"),
    ):
        bind_tcp("127.0.0.1", first.getsockname()[1])


def test_a_host_that_is_none_is_named():
    with pytest.raises(InvalidConfig, match=r"agent\.listen host\.invalid:9870"):
        bind_tcp("host.invalid", 9870)


def test_ipv6_is_an_address_too():
    try:
        listener = bind_tcp("::1", 0)
    except InvalidConfig as error:
        pytest.skip(error.message)
    with listener:
        assert listener.family == socket.AF_INET6
