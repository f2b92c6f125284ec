"""A model shown at a path before all of it is here: every file with its size, bytes as they come.

It joins a mount's session with what arrives. A read of missing bytes makes their chunks the most
urgent; complete files are the kernel's to read, and where it cannot do that beneath the mount, the
snapshot of a model that is here by now covers it. What brings the model is not its business: a pull
of this process that is told of here, or another process over the same store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

from modelcache import mounts
from modelcache.agent.arriving import Arriving, Audience
from modelcache.agent.clock import wall_clock_s
from modelcache.agent.engine import Engine
from modelcache.config import StreamSettings
from modelcache.domain.manifests import BlobId, File, Manifest
from modelcache.domain.preludes import prelude
from modelcache.domain.ranges import ByteRange
from modelcache.errors import ModelcacheError, MountFailed, UsageError
from modelcache.mounts.fuse import Channel, Session, Tree, widen_readahead
from modelcache.planner import Waiter
from modelcache.store.leases import Lease

MOUNT_LEASE: Final = "mount"
AGREE_S: Final = 10.0  # the kernel says at once what it can; this process may be short of CPU


class Report(Protocol):
    """Who is told what happens to readers: an event log, or a terminal."""

    def __call__(self, what: str, **details: Any) -> None:  # noqa: ANN401 - for JSON
        """what: timed_out, failed, doubted, no_passthrough, no_cover, bug."""
        ...


class StreamFiles:
    """The contents of a streaming mount; see `mounts.fuse.Contents`. Thread-safe."""

    def __init__(
        self,
        arriving: Arriving,
        files: Sequence[File],
        blobs: Callable[[BlobId], Path],
        alone: Callable[[], None],
    ) -> None:
        """blobs: where a complete blob is. alone: told when somebody waits and nobody brings."""
        self._alone = alone
        self._arriving = arriving
        self._files = files
        self._blobs = blobs
        self.given_up = False
        """Whether nobody will bring what is missing."""

    @property
    def flights(self) -> int:
        """See Contents."""
        return self._arriving.flights

    def read(self, number: int, offset: int, view: memoryview) -> bool:
        """See Contents."""
        return self._arriving.read(self._files[number], offset, view)

    def want(self, number: int, span: ByteRange, *, waits: bool) -> None:
        """See Contents."""
        file = self._files[number]
        end = min(span.end, file.size_bytes)
        if span.start < end:
            waiter = Waiter.READER if waits else Waiter.SOON
            coming = self._arriving.want(file.blob, ByteRange(span.start, end), waiter)
            if waits and not coming:
                self._alone()

    def open(self, number: int) -> int | None:
        """See Contents."""
        file = self._files[number]
        if self._arriving.is_complete(file):
            with suppress(FileNotFoundError):
                return os.open(self._blobs(file.blob), os.O_RDONLY | os.O_CLOEXEC)
        return None

    def hopeless(self, number: int) -> bool:
        """See Contents."""
        return self.given_up and not self._arriving.is_complete(self._files[number])


class Streaming:
    """One streaming mount, from `begin` until it is unmounted. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        target: Path,
        settings: StreamSettings,
        report: Report,
        *,
        sub_path: str = "",
        save: Callable[[dict[str, Any]], None] = lambda _: None,
        over: Callable[[], None] = lambda: None,
        alone: Callable[[], None] = lambda: None,
        covering: Callable[[], None] = lambda: None,
    ) -> None:
        """manifest: which the store has. sub_path: a folder of the model; empty for all.

        save: is given what the next process has to know to go on with the mount, before it takes
        effect. over: called when the mount is gone, and nobody has a file of it open. alone: called
        while somebody waits and nothing is being fetched. covering: called before the snapshot
        covers the mount, which stays whatever becomes of this process; not if it raises.
        Nothing is mounted yet. Raises UsageError for a folder that the model does not have, and
        for a model whose files only unpacking can tell.
        """
        if manifest.archives:
            raise UsageError("what this model holds is known only by unpacking it; mount it whole")
        below = f"{sub_path}/" if sub_path else ""
        files = tuple(file for file in manifest.files if file.path.startswith(below))
        if not files and manifest.files:
            raise UsageError(f"the model has no folder {sub_path!r}")
        self.manifest = manifest
        self.target = target
        self._sub_path = sub_path
        self._engine = engine
        self._settings = settings
        self._report = report
        self._files = files
        self._numbers: dict[BlobId, list[int]] = {}
        for number, file in enumerate(files):
            self._numbers.setdefault(file.blob, []).append(number)
        self._tree_files = [(file.path.removeprefix(below), file.size_bytes) for file in files]
        self._contents = StreamFiles(engine.arriving, files, engine.store.layout.blob, alone)
        self._save = save
        self._mtime_s = 0
        self._held = ExitStack()
        self._lease: Lease | None = None
        self._channel: Channel | None = None
        self._over = over
        self._covering = covering
        self._session: Session | None = None

    def begin(self) -> None:
        """Mount, and serve from threads of this process. Raises MountFailed, NotInStore.

        The model is protected from eviction until `close`, or the end of this process.
        """
        self._mtime_s = int(wall_clock_s())
        self._hold()
        channel = Channel.open()
        try:
            channel.mount(self.target, self._name)
        except MountFailed:
            channel.close()
            self._let_go()
            raise
        session = self._serve(channel, Tree(self._tree_files, self._mtime_s))
        if not session.agreed(AGREE_S):
            self.close()
            raise MountFailed(f"cannot mount at {self.target}: the kernel's FUSE is too old")
        self._keep(session.state())
        if not widen_readahead(self.target):
            self._report("slow_readahead", message="the kernel's readahead could not be set")
        session.news()  # what is mounted anew after a restart may be here already

    def take_over(self, fd: int, saved: Mapping[str, Any]) -> None:
        """Go on with what another process has begun and `save`d. Owns the descriptor.

        Raises MountFailed where that cannot be, and then the descriptor is closed: what waits gets
        an error.
        """
        channel = Channel(fd)
        try:
            if saved["model_id"] != self.manifest.model_id or not saved["session"]["resend"]:
                raise MountFailed("this kernel does not ask again what was not answered")
            self._mtime_s = int(saved["mtime_s"])
            tree = Tree(self._tree_files, self._mtime_s)
            tree.restore(saved["session"])
            self._hold()
        except (KeyError, TypeError, ValueError, IndexError) as error:
            channel.close()
            raise MountFailed("what was written down of it cannot be read") from error
        except ModelcacheError:
            channel.close()
            raise
        self._serve(channel, tree, saved["session"])

    @property
    def fd(self) -> int:
        """The descriptor that the mount lives by; negative when it is over."""
        return self._channel.fd if self._channel is not None else -1

    def _hold(self) -> None:
        store = self._engine.store
        self._lease = store.hold(self.manifest.model_id, MOUNT_LEASE, str(self.target))

    def _keep(self, session: dict[str, Any]) -> None:
        self._save(
            {"model_id": self.manifest.model_id, "mtime_s": self._mtime_s, "session": session}
        )

    def _serve(
        self, channel: Channel, tree: Tree, before: Mapping[str, Any] | None = None
    ) -> Session:
        settings = self._settings
        self._channel = channel
        session = Session(
            channel,
            tree,
            self._contents,
            self._report,
            read_timeout_s=settings.read_timeout_s,
            chunk_bytes=self._engine.settings.store.chunk_bytes,
            ahead_bytes_max=settings.ahead_bytes,
            passthrough=settings.passthrough,
            before=before,
            keep=self._keep,
            ended=self._let_go,
            cover=self._cover,
        )
        self._session = session
        session.start()
        first = [(file.blob, span) for file, span in prelude(self._files)]
        audience = Audience(session.news, self._doubt, first)
        self._held.enter_context(self._engine.arriving.attended(audience))
        return session

    @property
    def _name(self) -> str:
        """What the mount is called in the kernel's table: two that show the same are the same."""
        part = f"#{sha256(self._sub_path.encode()).hexdigest()[:12]}" if self._sub_path else ""
        return f"modelcache:{self.manifest.model_id[:12]}{part}"

    def _cover(self) -> bool:
        """See Session. True when it is covered, or cannot or shall not be."""
        if not self._settings.cover:
            return True
        snapshot = self._engine.store.snapshot_path(self.manifest.model_id)
        if snapshot is None:
            return False
        try:
            self._covering()
            mounts.cover(snapshot / self._sub_path, self.target, self._name)
        except ModelcacheError as error:
            self._report("no_cover", message=error.message)
        return True

    def give_up(self, *, given_up: bool) -> None:
        """Say whether what is missing will never come: then nobody waits for it."""
        self._contents.given_up = given_up
        if self._session is not None:
            self._session.news()

    def _doubt(self, blob: BlobId) -> None:
        if self._session is not None:
            for number in self._numbers.get(blob, ()):
                self._session.doubt(number)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it is unmounted, by whomever, and nobody has a file open; False if not in time."""
        return self._session is None or self._session.wait(timeout_s)

    def close(self) -> None:
        """Unmount. Who has a file open keeps it, and is served until they close it.

        Idempotent. Raises MountFailed.
        """
        mounts.unmount(self.target)

    def _let_go(self) -> None:
        """Nobody needs it any more."""
        self._held.close()
        if self._lease is not None:
            self._lease.release()
        if self._channel is not None:
            self._channel.close()
        self._over()
