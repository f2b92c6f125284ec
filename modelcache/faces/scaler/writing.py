"""Statuses of `ModelScale` objects, what they order, and checkpoints: written by whoever leads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import httpx2
from lightkube import ApiError, Client
from lightkube.types import PatchType

from modelcache.errors import UsageError
from modelcache.faces.kubernetes.objects import ModelScale, now_text
from modelcache.faces.logs import Log
from modelcache.faces.scaler.buffers import Buffers
from modelcache.faces.scaler.cluster import Cluster, View
from modelcache.faces.scaler.declared import Key, generation_of
from modelcache.faces.scaler.outlooks import Outlooks
from modelcache.faces.scaler.recording import Recording
from modelcache.faces.scaler.status import differs, refused, status_of

EVERY_S: Final = 1.0
"""Between rounds: statuses are for people, and for what scales by them within seconds."""


class Writing:
    """See the module."""

    def __init__(
        self,
        client: Client,
        cluster: Cluster,
        outlooks: Outlooks,
        recording: Recording,
        *,
        log: Log | None = None,
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._outlooks = outlooks
        self._recording = recording
        self._log = log
        self._buffers = Buffers(client, outlooks, self._tell)

    def lead(self, over: threading.Event) -> None:
        """Write until told that it is over."""
        self._recording.begin()
        try:
            while not over.wait(EVERY_S):
                view = self._cluster.view()
                if view is not None:
                    self.look(view)
        finally:
            self._recording.end()

    def leave(self) -> None:
        """While it leads still: write what only this process knows. Takes a bounded time."""
        view = self._cluster.view()
        if view is not None:
            self._recording.leave(view)

    def look(self, view: View) -> None:
        """One round: what is not as it should be is written."""
        for key in (*view.scales, *view.refused):
            item = self._cluster.item(key)
            if item is None:
                continue
            before = item.get("status") or {}
            status = self._status(key, view, item, before)
            if differs(status, before):
                self._write(key, {**status, "updatedAt": now_text()})
        self._buffers.look(view)
        self._recording.look(view)

    def _status(
        self, key: Key, view: View, item: Mapping[str, Any], before: Mapping[str, Any]
    ) -> dict[str, Any]:
        now = now_text()
        generation = generation_of(item)
        scale = view.scales.get(key)
        if scale is None:
            return refused(generation, view.refused.get(key, ""), before, now)
        try:
            found = self._outlooks.of(scale, view)
        except UsageError as error:
            return refused(generation, error.message, before, now)
        return status_of(
            scale,
            found,
            model_id=view.servers[key].model_id,
            shared_slots=self._outlooks.shared_slots(scale, view),
            problem=self._outlooks.problem(key),
            before=before,
            now=now,
        )

    def _write(self, key: Key, status: Mapping[str, Any]) -> None:
        namespace, name = key
        try:
            self._client.patch(
                ModelScale.Status,
                name,
                {"status": status},
                namespace=namespace,
                patch_type=PatchType.MERGE,
            )
        except ApiError as error:
            if error.status.code != httpx2.codes.NOT_FOUND:  # it went meanwhile
                self._tell(key, error)
        except httpx2.HTTPError as error:
            self._tell(key, error)

    def _tell(self, key: Key, error: Exception) -> None:
        if self._log is not None:
            self._log.warning("change_failed", scale="/".join(key), message=str(error)[:200])
