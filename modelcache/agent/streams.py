"""The streaming mounts of an agent: begun, gone on with after a restart, ended.

Each mount's descriptor is also with the holder, and what the next agent has to know of it in a
file, so that an agent that was killed is followed by one that goes on. Where that cannot be, the
mount is made anew, and said so: who had files of the old one open has got errors. One that is
covered by its model's snapshot needs nobody: it stays as it is.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, Final

from modelcache import mounts
from modelcache.agent.engine import Engine
from modelcache.agent.events import Event, EventKind, EventLog
from modelcache.agent.streaming import Streaming
from modelcache.config import StreamSettings
from modelcache.domain.volumes import Volume
from modelcache.errors import ModelcacheError, MountFailed
from modelcache.mounts.fuse import FILESYSTEM
from modelcache.mounts.keeper import Keeper

TROUBLE_EVERY_S: Final = 1.0  # at most one event of a kind and volume: a hundred readers fail alike
_ENDS: Final = {EventKind.FAILED: True, EventKind.STARTED: False, EventKind.WARM: False}
"""What a pull's events mean for who waits; RESOLVED, too, where another model comes by now."""


@dataclass(frozen=True, slots=True)
class _Mount:
    """One mount of a volume, which may have had others. wanted: the id of what brings its model."""

    volume: Volume
    wanted: str
    name: str


class Streams:
    """See the module. Thread-safe; the caller does one thing at a time to a volume."""

    def __init__(
        self, engine: Engine, events: EventLog, hurry: Callable[[str], None] = lambda _: None
    ) -> None:
        """events: where readers' troubles are told, and where it is heard what will not come.

        hurry: called with the wanted id of what somebody waits for and nobody fetches.
        """
        self._hurry = hurry
        self._engine = engine
        self._events = events
        self._settings: StreamSettings = engine.settings.stream
        self._folder = engine.store.layout.streams
        self._lock = threading.Lock()
        self._streams: dict[str, tuple[str, Streaming]] = {}  # by volume; with its wanted id
        self._told_s: dict[tuple[str, str], float] = {}
        self._troubles: Counter[str] = Counter()
        owner = sha256(str(engine.store.layout.root.absolute()).encode()).hexdigest()
        self._keeper: Keeper | None = None
        if self._settings.hold_s > 0:
            beside = engine.settings.agent.socket.expanduser().with_name("holder.sock")
            place = Path(self._settings.holder).expanduser() if self._settings.holder else beside
            self._keeper = Keeper(place, owner, self._settings.hold_s)
        self._stop_watching: Callable[[], None] | None = None

    def begin(self, volume: Volume, wanted: str) -> None:
        """Mount a volume whose model is on its way. wanted: the id of what brings it.

        Raises MountFailed, UsageError, NotInStore, CorruptData.
        """
        mount = _Mount(volume, wanted, f"{volume.volume_id}.{secrets.token_hex(4)}")
        streaming = self._make(mount)
        streaming.begin()
        self._keep(mount, streaming)
        if self._keeper is not None and not self._keeper.hold(mount.name, streaming.fd):
            self._trouble(volume, "not_held", message="no holder; a restart ends this mount")

    def take_over(self, volumes: Sequence[Volume]) -> None:
        """Go on with what an agent before this one has mounted, or mount it anew and say so."""
        held = self._keeper.take() if self._keeper is not None else {}
        saved = self._saved()
        for volume in volumes:
            mount, state = saved.pop(volume.volume_id, (_Mount(volume, "", ""), {}))
            fd = held.pop(mount.name, None)
            try:
                if fd is None:
                    raise MountFailed("nobody has held it")
                streaming = self._make(mount)
                streaming.take_over(fd, state)
            except ModelcacheError as error:
                self._remount(mount, error.message)
            else:
                self._keep(mount, streaming)
                self._events.add(EventKind.STREAM_TAKEN_OVER, **volume.to_json())
        for name, fd in held.items():  # of volumes that are not there any more
            os.close(fd)
            if self._keeper is not None:
                self._keeper.drop(name)
        for mount, _ in saved.values():
            self._file(mount).unlink(missing_ok=True)

    def end(self, volume_id: str) -> None:
        """Let go of a volume that was unmounted; idempotent. Who has it open is served on."""
        with self._lock:
            self._streams.pop(volume_id, None)

    def close(self) -> None:
        """Stop looking after them; they stay mounted, and wait for the next agent. Idempotent."""
        with self._lock:
            stop, self._stop_watching = self._stop_watching, None
        if stop is not None:
            stop()

    def counts(self) -> tuple[int, dict[str, int]]:
        """How many mounts there are, and what readers met so far, by its name."""
        with self._lock:
            return len(self._streams), dict(self._troubles)

    # Parts

    def _make(self, mount: _Mount) -> Streaming:
        volume = mount.volume

        def report(what: str, **details: Any) -> None:  # noqa: ANN401 - JSON
            self._trouble(volume, what, **details)

        return Streaming(
            self._engine,
            self._engine.store.manifest(volume.model_id),
            Path(volume.target),
            self._settings,
            report,
            sub_path=volume.sub_path,
            save=lambda state: self._save(mount, state),
            over=lambda: self._over(mount),
            alone=lambda: self._hurry(mount.wanted),
        )

    def _keep(self, mount: _Mount, streaming: Streaming) -> None:
        with self._lock:
            self._streams[mount.volume.volume_id] = (mount.wanted, streaming)
            watching = self._stop_watching is not None
        if not watching:
            with suppress(ModelcacheError):  # too many watch: then readers wait for their time
                self._stop_watching = self._events.watch(self._heard)

    def _remount(self, mount: _Mount, why: str) -> None:
        """Mount anew what cannot be gone on with, unless a snapshot covers it."""
        volume = mount.volume
        if self._keeper is not None:
            self._keeper.drop(mount.name)  # or who reads the old mount would wait for nobody
        if not is_covered(Path(volume.target)):
            try:
                mounts.unmount(Path(volume.target))
                self.begin(volume, mount.wanted)
            except ModelcacheError as error:
                self._trouble(volume, "not_mounted", message=error.message)
                return
            self._events.add(EventKind.STREAM_REMOUNTED, why=why, **volume.to_json())
        self._file(mount).unlink(missing_ok=True)

    def _over(self, mount: _Mount) -> None:
        """A mount is gone, with all that was open of it."""
        if self._keeper is not None:
            self._keeper.drop(mount.name)
        self._file(mount).unlink(missing_ok=True)

    def _heard(self, event: Event) -> None:
        """A pull has failed for good, or begins again: whoever waits should know."""
        if event.kind not in _ENDS and event.kind is not EventKind.RESOLVED:
            return
        with self._lock:
            streams = [each for wanted, each in self._streams.values() if wanted == event.model]
        for streaming in streams:
            other = event.data.get("model_id", "") not in {"", streaming.manifest.model_id}
            streaming.give_up(given_up=_ENDS.get(event.kind, False) or other)

    def _trouble(self, volume: Volume, what: str, **details: Any) -> None:  # noqa: ANN401 - JSON
        now_s, key = monotonic(), (volume.volume_id, what)
        with self._lock:
            self._troubles[what] += 1
            if now_s - self._told_s.get(key, float("-inf")) < TROUBLE_EVERY_S:
                return
            self._told_s[key] = now_s
        self._events.add(
            EventKind.STREAM_TROUBLE,
            what=what,
            volume_id=volume.volume_id,
            target=volume.target,
            ref=volume.ref,
            **details,
        )

    # What the next agent has to know. Not synced: a mount does not outlive the machine.

    def _file(self, mount: _Mount) -> Path:
        return self._folder / f"{sha256(mount.name.encode()).hexdigest()[:32]}.json"

    def _save(self, mount: _Mount, state: dict[str, Any]) -> None:
        path = self._file(mount)
        path.parent.mkdir(exist_ok=True)
        plain = {"name": mount.name, "wanted": mount.wanted, "volume": mount.volume.to_json()}
        written = path.with_suffix(".new")
        written.write_text(json.dumps({**plain, "state": state}))
        written.replace(path)

    def _saved(self) -> dict[str, tuple[_Mount, dict[str, Any]]]:
        """By volume; of several, the newest. What cannot be read is as good as not there."""
        found: dict[str, tuple[_Mount, dict[str, Any]]] = {}
        for path in sorted(self._folder.glob("*.json"), key=lambda each: each.stat().st_mtime_ns):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                plain = json.loads(path.read_bytes())
                volume = Volume.from_json(plain["volume"])
                mount = _Mount(volume, str(plain["wanted"]), str(plain["name"]))
                found[volume.volume_id] = (mount, dict(plain["state"]))
        return found


def is_covered(target: Path) -> bool:
    """Whether what is seen at a streaming mount's place is no stream any more."""
    seen = mounts.top_at(target)
    return seen is not None and seen.target == str(target) and seen.filesystem != FILESYSTEM
