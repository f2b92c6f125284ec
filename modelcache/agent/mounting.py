"""Streaming a model without an agent: a pull and a mount in one process.

The pull begins the mount as soon as it knows what comes, and is tried again while the mount lives:
who reads waits for it until the read's own time is over. What became another model meanwhile is not
mixed into what is shown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

from modelcache.agent.engine import Engine
from modelcache.agent.progressing import is_passing, retry_delay_s
from modelcache.agent.snapshot import Snapshot
from modelcache.agent.streaming import Report, Streaming
from modelcache.domain.manifests import Manifest, ModelId
from modelcache.domain.refs import Ref
from modelcache.errors import Cancelled, ModelcacheError, OriginChanged
from modelcache.transfer.report import ProgressCallback

ASKED_AGAIN_S: Final = 2.0  # who waits is no reason to try again sooner than after that
STEP_S: Final = 0.1  # how often it is looked whether somebody stops it
STOP_S: Final = 10.0  # a pull that was told to stop has let go of its origin by then


class StreamingPull:
    """See the module. Use once: `begin`, `wait`, `close`."""

    def __init__(
        self,
        engine: Engine,
        ref: Ref,
        target: Path,
        report: Report,
        *,
        progress: ProgressCallback | None = None,
        covering: Callable[[ModelId], None] = lambda _: None,
    ) -> None:
        """progress: as for Engine.pull, in a thread of ours. covering: as for Streaming."""
        self._engine = engine
        self._ref = ref
        self._target = target
        self._report = report
        self._progress = progress
        self._covering = covering
        self._cancel = threading.Event()
        self._alone = threading.Event()  # somebody waits, and nothing is being fetched
        self._known = threading.Event()  # what this comes to: a mount, a warm model, or an error
        self._streaming: Streaming | None = None
        self._warm: Snapshot | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="modelcache-stream", daemon=True)

    def begin(self, stopped: threading.Event) -> Streaming | Snapshot:
        """Mount as soon as it is known what the ref means; a model that is warm is only returned.

        Raises what the pull or the mount failed with before that; Cancelled after `stopped` is set.
        """
        self._thread.start()
        while not self._known.wait(STEP_S):
            if stopped.is_set():
                self._cancel.set()
                raise Cancelled("stopped before it was mounted")
        if self._streaming is not None:
            return self._streaming
        if self._warm is not None:
            return self._warm
        assert self._error is not None, "it is known"  # noqa: S101
        raise self._error

    def close(self) -> None:
        """Unmount, and stop the pull; what it has brought is kept. Idempotent."""
        self._cancel.set()
        if self._streaming is not None:
            self._streaming.close()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        attempts = 0
        while not self._cancel.is_set():
            try:
                self._warm = self._engine.pull(
                    self._ref,
                    progress=self._progress,
                    cancel=self._cancel,
                    resolved=self._resolved,
                )
                self._arrived()
                break
            except Cancelled:
                break
            except ModelcacheError as error:
                attempts += 1
                if self._streaming is None:
                    self._error = error
                    break
                self._failed(self._streaming, error, attempts)
            except BaseException as error:  # noqa: BLE001 - the supervisor: `begin` raises it
                self._error = error
                if self._streaming is not None:
                    self._streaming.give_up(given_up=True)
                    self._report("bug", message=f"this is a bug: {type(error).__name__}: {error}")
                break
        if self._error is None and not self._known.is_set():
            self._error = Cancelled("stopped")
        self._known.set()

    def _resolved(self, manifest: Manifest) -> None:
        if self._streaming is None:
            streaming = Streaming(
                self._engine,
                manifest,
                self._target,
                self._engine.settings.stream,
                self._report,
                alone=self._alone.set,
                covering=lambda: self._covering(manifest.model_id),
            )
            streaming.begin()
            self._streaming = streaming
            self._known.set()
        elif manifest.model_id != self._streaming.manifest.model_id:
            raise OriginChanged(
                f"{self._ref.redacted()} means another model now; unmount and mount it again"
            )
        else:
            self._streaming.give_up(given_up=False)

    def _arrived(self) -> None:
        """All of it is here."""
        if self._streaming is not None:
            self._streaming.give_up(given_up=False)

    def _failed(self, streaming: Streaming, error: ModelcacheError, attempts: int) -> None:
        """Say so, let nobody wait for what will not come, and wait for the next try."""
        lasting = isinstance(error, OriginChanged) or not is_passing(error, attempts)
        delay_s = retry_delay_s(error, attempts, str(self._target))
        streaming.give_up(given_up=lasting)
        self._report("failed", message=error.message, retry_in_s=round(delay_s, 1))
        self._alone.clear()
        until_s = monotonic() + delay_s
        self._cancel.wait(min(delay_s, ASKED_AGAIN_S))
        while monotonic() < until_s and not self._cancel.is_set() and not self._alone.is_set():
            self._cancel.wait(min(STEP_S, delay_s))
