"""Fetching with a volume's own secret what the node itself may not read.

By a process of its own over the same store, with an environment that holds the secret and nothing
of the node's (`agent.credentials`): no library can mix up the two, and nothing of the secret stays
in the agent. Such a pull shares no chunks with other nodes, and a restart of the agent ends it;
what it has brought is kept, and the next one goes on from there.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelcache.agent.credentials import command_for, environment_of
from modelcache.agent.reaching import Reach
from modelcache.config import Settings
from modelcache.domain.manifests import ModelId
from modelcache.domain.refs import Ref
from modelcache.errors import ModelcacheError, NotWarmYet, SourceUnavailable, error_named

PULLS_MAX: Final = 8  # at once; others wait for kubelet to ask again
STOP_S: Final = 10.0
_GROUPS: Final = ("store", "transfer")


@dataclass(slots=True)
class _Pull:
    """One of them. error: code and message, where it failed."""

    process: subprocess.Popen[bytes] | None = None
    model_id: ModelId | None = None
    error: tuple[str, str] | None = None


class Borrowing:
    """See the module. Thread-safe. Who may have what is decided elsewhere."""

    def __init__(self, settings: Settings, reach: Reach | None = None) -> None:
        """reach: where pods may lead; as the settings have it without."""
        self._reach = reach or Reach(settings)
        self._pulls: dict[str, _Pull] = {}
        self._lock = threading.Lock()
        self._closed = False

    def look(self, ref: Ref) -> ModelId | None:
        """The model, if a pull has brought it; None where there was none.

        Raises NotWarmYet while one is under way, and, once, what it failed with.
        """
        with self._lock:
            pull = self._pulls.get(str(ref))
            if pull is None:
                return None
            if pull.error is not None:
                del self._pulls[str(ref)]
                raise error_named(*pull.error, ModelcacheError)
            if pull.model_id is None:
                raise _coming(ref)
            return pull.model_id

    def begin(self, ref: Ref, credentials: Mapping[str, str], *, tenant: str = "") -> None:
        """Begin a pull, unless there is one. Raises NotWarmYet always: it takes its time."""
        settings = self._reach.settings_for(ref, tenants_only=bool(tenant))
        with self._lock:
            if str(ref) not in self._pulls and not self._closed:
                under_way = sum(pull.process is not None for pull in self._pulls.values())
                if under_way >= PULLS_MAX:
                    raise NotWarmYet(f"{ref.redacted()} waits for its turn")
                pull = self._pulls[str(ref)] = _Pull()
                thread = threading.Thread(
                    target=self._run,
                    args=(settings, ref, dict(credentials), pull),
                    name="modelcache-borrowing",
                    daemon=True,
                )
                thread.start()
        raise _coming(ref)

    def forget(self, ref: Ref) -> None:
        """What a pull has brought is not there any more."""
        with self._lock:
            self._pulls.pop(str(ref), None)

    def close(self) -> None:
        """Stop what is under way; finished chunks are kept. Idempotent."""
        with self._lock:
            self._closed = True
            processes = [pull.process for pull in self._pulls.values() if pull.process is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def _run(
        self, settings: Settings, ref: Ref, credentials: Mapping[str, str], pull: _Pull
    ) -> None:
        try:
            answer = self._pull(settings, ref, credentials, pull)
        except (ModelcacheError, OSError) as error:
            answer = {"error": {"code": getattr(error, "code", "error"), "message": str(error)}}
        failure = answer.get("error")
        with self._lock:
            pull.process = None
            if failure is None:
                pull.model_id = ModelId(str(answer.get("model_id")))
            else:
                pull.error = (str(failure.get("code")), str(failure.get("message")))

    def _pull(
        self, settings: Settings, ref: Ref, credentials: Mapping[str, str], pull: _Pull
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="modelcache-secret-") as name:
            folder = Path(name)
            environment = environment_of(settings, credentials, folder, groups=_GROUPS)
            with subprocess.Popen(  # noqa: S603 - ourselves
                command_for(folder, "pull", ref),
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as process:
                with self._lock:
                    pull.process = process
                out, _ = process.communicate()
        try:
            answer: dict[str, Any] = json.loads(out)
        except ValueError as error:
            raise SourceUnavailable(f"the pull of {ref.redacted()} was ended") from error
        return answer


def _coming(ref: Ref) -> NotWarmYet:
    return NotWarmYet(f"fetching {ref.redacted()} with the volume's own secret")
