"""Checkpoints at the API server: read one by one or all together, written by server-side apply.

Whatever is refused is told once, and again only after it has been granted meanwhile: rights that
lack for one checkpoint lack for a thousand. Nothing here tries again; who asks does.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, Final

import httpx2
from lightkube import ApiError, Client
from lightkube.types import PatchType

from modelcache.errors import CorruptData, SourceRefused, SourceUnavailable
from modelcache.faces.kubernetes.names import FIELD_MANAGER, GROUP, VERSION
from modelcache.faces.kubernetes.objects import ModelScaleCheckpoint
from modelcache.faces.logs import Log
from modelcache.faces.scaler.checkpoint import Checkpoint, checkpoint_of, spec_of
from modelcache.faces.scaler.declared import Key, key_of

ONE_BY_ONE_MAX: Final = 16
"""More are listed, as when a scaler begins; few are those of objects that come later."""
PAGE: Final = 100
"""Objects of a list that are in memory at once; 10 MB if all are as large as can be."""
TOLD_MAX: Final = 1000  # refusals that are remembered as told
NO_SUCH_KIND: Final = (
    "the cluster has no ModelScaleCheckpoint; "
    "kubectl apply --server-side -f daemonset/chart/crds brings it"
)
_OF_ALL: Final = frozenset(
    {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN, httpx2.codes.NOT_FOUND}
)
"""What is answered for want of a right, or of the kind of object: to each checkpoint alike."""


class CheckpointStore:
    """See the module. Thread-safe. counts: by what became of checkpoints."""

    def __init__(self, client: Client, *, log: Log | None = None) -> None:
        self._client = client
        self._log = log
        self._told: dict[tuple[str, int, Key | None], Key | None] = {}  # and of whom it was told
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """How many were `loaded`, `unusable`, `written` and `refused` so far."""
        with self._lock:
            return {
                name: self._counts[name] for name in ("loaded", "unusable", "written", "refused")
            }

    def count(self, result: str) -> None:
        """One more."""
        with self._lock:
            self._counts[result] += 1

    def read(self, keys: Collection[Key]) -> Iterator[tuple[Key, Checkpoint]]:
        """Those of them that there are and that can be used; others are told and left out.

        Raises SourceRefused and SourceUnavailable, at any point.
        """
        try:
            for item in self._items(keys):
                key = key_of(item)
                try:
                    found = checkpoint_of(item)
                except CorruptData as error:
                    self.count("unusable")
                    self._warn("checkpoint_unusable", key, error.message)
                else:
                    yield key, found
        except httpx2.HTTPStatusError as error:
            self._tell("checkpoints_not_read", error, None)
            raise _error_of(error) from error
        except (httpx2.HTTPError, ValueError) as error:  # ValueError: no JSON
            raise SourceUnavailable(str(error)[:200] or type(error).__name__) from error
        self._granted("checkpoints_not_read", None)

    def write(self, key: Key, found: Checkpoint) -> None:
        """Make it, or replace what is there. key: of the ModelScale, which it is named after.

        Raises SourceRefused where it will be so again, and SourceUnavailable.
        """
        namespace, name = key
        change: dict[str, Any] = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "ModelScaleCheckpoint",
            "metadata": {
                "name": name,
                "namespace": namespace,
                # Neither a controller nor blocking: that would take rights on the owner.
                "ownerReferences": [
                    {
                        "apiVersion": f"{GROUP}/{VERSION}",
                        "kind": "ModelScale",
                        "name": name,
                        "uid": found.scale_uid,
                    }
                ],
            },
            "spec": spec_of(found),
        }
        try:
            self._client.patch(
                ModelScaleCheckpoint,
                name,
                change,
                namespace=namespace,
                patch_type=PatchType.APPLY,
                field_manager=FIELD_MANAGER,
                force=True,  # nobody else has anything to write here
            )
        except httpx2.HTTPStatusError as error:
            self.count("refused")
            self._tell("checkpoint_not_written", error, key)
            raise _error_of(error) from error
        except (httpx2.HTTPError, ValueError) as error:
            self.count("refused")
            raise SourceUnavailable(str(error)[:200] or type(error).__name__) from error
        self.count("written")
        self._granted("checkpoint_not_written", key)

    def _items(self, keys: Collection[Key]) -> Iterator[Any]:
        if len(keys) > ONE_BY_ONE_MAX:
            found = self._client.list(ModelScaleCheckpoint, namespace="*", chunk_size=PAGE)
            yield from (item for item in found if key_of(item) in keys)
            return
        for namespace, name in keys:
            try:
                yield self._client.get(ModelScaleCheckpoint, name, namespace=namespace)
            except ApiError as error:  # without that kind of object the answer is no Status
                if error.status.code != httpx2.codes.NOT_FOUND:
                    raise

    def _tell(self, event: str, error: httpx2.HTTPStatusError, key: Key | None) -> None:
        code = error.response.status_code
        what = (event, code, None if code in _OF_ALL else key)
        with self._lock:
            known = what in self._told
            if len(self._told) < TOLD_MAX:
                self._told.setdefault(what, key)
        if not known:
            unserved = code == httpx2.codes.NOT_FOUND and not isinstance(error, ApiError)
            self._warn(event, key, NO_SUCH_KIND if unserved else str(error))

    def _granted(self, event: str, key: Key | None) -> None:
        with self._lock:
            if self._told:
                self._told = {
                    what: whose
                    for what, whose in self._told.items()
                    if what[0] != event or whose != key
                }

    def _warn(self, event: str, key: Key | None, message: str) -> None:
        if self._log is not None:
            where = {} if key is None else {"scale": "/".join(key)}
            self._log.warning(event, **where, message=" ".join(message.split())[:200])


def _error_of(error: httpx2.HTTPStatusError) -> SourceRefused | SourceUnavailable:
    code = error.response.status_code
    message = f"the API server answers {code}"
    again = code == httpx2.codes.TOO_MANY_REQUESTS or code >= httpx2.codes.INTERNAL_SERVER_ERROR
    return SourceUnavailable(message) if again else SourceRefused(message)
