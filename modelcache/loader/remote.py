"""A model that an agent of this node has, or is fetching: read over its API, or where it lies.

A warm model whose directory this process can open is read there. Otherwise bytes come over the
agent's socket, as they arrive, what is waited for first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import Any, Final

from modelcache.client import AgentClient, error_of
from modelcache.domain.refs import Ref
from modelcache.domain.wanted import ModelPhase, WantedStatus
from modelcache.errors import (
    BadTensors,
    CorruptData,
    DigestMismatch,
    NotYet,
    SourceUnavailable,
    Throttled,
)
from modelcache.loader.index import INDEX_BYTES_MAX
from modelcache.loader.loading import Folder, Model, TensorFile
from modelcache.loader.plan import Piece

READ_BYTES: Final = 8 << 20  # what an agent gives at once
WAIT_S: Final = 5.0
THREADS: Final = 8
STEP_S: Final = 0.05  # how often it is asked whether it is known what a ref means
SETTLE_S: Final = 20.0
LEASE: Final = "loader"
PRIORITY: Final = 90  # somebody waits, as for a volume


def remote_model(client: AgentClient, ref: Ref, *, direct: bool) -> Model:
    """Have the agent bring it, and return when it is known what comes.

    Raises what the agent's attempt has failed with, and AgentUnavailable.
    """
    lease = f"{LEASE}/{os.getpid()}-{threading.get_ident()}"
    try:
        status = client.want(ref, priority=PRIORITY, lease=lease)
    except BaseException:
        client.close()
        raise
    held = _Held(client, ref, lease)
    try:
        while not status.model_id and not status.phase.settled:
            sleep(STEP_S)
            status = client.status(ref)
        _check(status)
        if status.phase is ModelPhase.WARM and os.access(status.path, os.R_OK | os.X_OK):
            return Folder(Path(status.path), direct=direct, release=held.release)
        return RemoteModel(held, status.model_id)
    except BaseException:
        held.release()
        raise


def _check(status: WantedStatus) -> None:
    if status.phase is ModelPhase.FAILED and status.trouble is not None:
        raise error_of(status.trouble)


class _Held:
    """A want of ours, until it is released."""

    def __init__(self, client: AgentClient, ref: Ref, lease: str) -> None:
        self.client = client
        self.ref = ref
        self._lease = lease

    def check(self) -> None:
        """Raise what the agent's attempt has failed with."""
        _check(self.client.status(self.ref))

    def finish(self) -> None:
        """Wait until the model is warm."""
        while True:
            status = self.client.wait(self.ref, SETTLE_S)
            _check(status)
            if status.phase is ModelPhase.WARM:
                return

    def release(self) -> None:
        """End the want; the model stays until its room is needed."""
        try:
            self.client.release(self.ref, self._lease)
        except SourceUnavailable:
            return  # an agent that is gone; the want is found by who looks at it later
        finally:
            self.client.close()


class RemoteModel:
    """See `loading.Model`."""

    page_bytes = 1
    threads = THREADS

    def __init__(self, held: _Held, model_id: str) -> None:
        """Raises CorruptData when the agent's answer cannot be read."""
        self._held = held
        self._model_id = model_id
        self._opened: list[RemoteFile] = []
        self._sizes = _sizes(held.client.model(model_id))

    def names(self, *, deep: bool) -> Sequence[str]:
        """See Model."""
        del deep
        return list(self._sizes)

    def small(self, name: str) -> bytes:
        """See Model. Raises BadTensors for one that is not small."""
        if self._sizes[name] > INDEX_BYTES_MAX:
            raise BadTensors(f"{name} has {self._sizes[name]} bytes, which is no index")
        return self.open(name).head(0, self._sizes[name])

    def open(self, name: str) -> TensorFile:
        """See Model."""
        file = RemoteFile(self._held, self._model_id, name, self._sizes[name])
        self._opened.append(file)
        return file

    def complete(self) -> None:
        """See Model: the agent has all of it, verified, and what was read is what was verified."""
        self._held.finish()
        for file in self._opened:
            file.check()

    def close(self) -> None:
        """See Model."""
        self._held.release()


def _sizes(plain: Any) -> dict[str, int]:  # noqa: ANN401 - JSON
    try:
        return {str(each["path"]): int(each["size_bytes"]) for each in plain["contents"]}
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptData("an agent's model cannot be read; is it of another version?") from error


class RemoteFile:
    """One file of it. Thread-safe."""

    def __init__(self, held: _Held, model_id: str, name: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._held = held
        self._model_id = model_id
        self._name = name
        self._stamps: set[str] = set()

    def close(self) -> None:
        """See TensorFile."""

    def check(self) -> None:
        """Raises DigestMismatch when bytes were given that did not stand."""
        if self._stamps:
            self._ask(0, 0)
        if len(self._stamps) > 1:
            raise DigestMismatch(
                f"{self._name} may not have been what its origin says when it was first read; "
                "load it again"
            )

    def ready(self, piece: Piece) -> bool:
        """See Reader: asking is the only way to know, and makes it come."""
        del piece
        return True

    def head(self, start: int, size_bytes: int) -> bytes:
        """See TensorFile."""
        data = bytearray(size_bytes)
        self._fill(start, memoryview(data))
        return bytes(data)

    def read(self, piece: Piece, into: memoryview) -> None:
        """See Reader."""
        self._fill(piece.start, into[: min(piece.end, self.size_bytes) - piece.start])

    def read_runs(self, piece: Piece, into: memoryview) -> None:
        """See Reader: all from the first run to the last, of which the runs are kept."""
        data = memoryview(bytearray(piece.end - piece.start))
        self._fill(piece.start, data)
        for number in range(piece.count):
            at, offset = number * piece.run_bytes, number * piece.stride_bytes
            into[at : at + piece.run_bytes] = data[offset : offset + piece.run_bytes]

    def _fill(self, start: int, view: memoryview) -> None:
        for at in range(0, len(view), READ_BYTES):
            part = view[at : at + READ_BYTES]
            part[:] = self._wait(start + at, len(part))

    def _wait(self, start: int, size_bytes: int) -> bytes:
        while True:
            try:
                return self._ask(start, size_bytes)
            except NotYet:
                self._held.check()
            except Throttled as error:
                sleep(error.retry_after_s or STEP_S)

    def _ask(self, start: int, size_bytes: int) -> bytes:
        data, stamp = self._held.client.read_bytes(
            self._model_id, self._name, start, start + size_bytes, wait_s=WAIT_S
        )
        self._stamps.add(stamp)
        return data
