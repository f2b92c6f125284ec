"""Watching one kind of object: a list, then every change, again and again while it lives.

Whatever breaks - a connection, the API server, a version that is too old - ends in a new list,
after which the watcher knows again what there is; deletions that nobody saw are told then. One
thread; its callbacks are called there, one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import httpx2
from lightkube import ApiError, Client

from modelcache.faces.kubernetes.connect import ClusterClient
from modelcache.faces.logs import Log

WATCH_S: Final = 240  # of one request; then it is asked anew, which a dead connection needs too
STOP_S: Final = 2.0
PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 15.0

Item = TypeVar("Item")


class Informer(Generic[Item]):
    """See the module. Thread-safe to look at."""

    def __init__(
        self,
        client: Client,
        kind: type[Any],
        *,
        labels: Mapping[str, Any] | None = None,
        fields: Mapping[str, Any] | None = None,
        namespace: str | None = None,
        changed: Callable[[Item], None] | None = None,
        gone: Callable[[Item], None] | None = None,
        synced: Callable[[], None] | None = None,
        keep: Callable[[Any], Item] | None = None,
        log: Log | None = None,
    ) -> None:
        """labels, fields: selectors. namespace: `*` for all. synced: called after each list.

        keep: what to remember of an object, where all of it is too much; it has to have the
        namespace, name and resourceVersion in its metadata.
        """
        self._client = client
        self._kind = kind
        self._where: dict[str, Any] = {}
        if labels:
            self._where["labels"] = dict(labels)
        if fields:
            self._where["fields"] = dict(fields)
        if namespace is not None:
            self._where["namespace"] = namespace
        self._changed, self._gone, self._synced, self._log = changed, gone, synced, log
        self._keep = keep
        self._items: dict[tuple[str, str], Item] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._once = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"modelcache-watch-{kind.__name__}", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, wait_s: float = STOP_S) -> None:
        """Call nobody any more, and end, within the time. Other watches of the client go on."""
        self._stopped.set()
        if isinstance(self._client, ClusterClient):
            self._client.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(wait_s)

    def wait_synced(self, timeout_s: float) -> bool:
        """Whether all there is has been told at least once, within the time."""
        return self._once.wait(timeout_s)

    def items(self) -> list[Item]:
        """What there is, as far as it is known."""
        with self._lock:
            return list(self._items.values())

    def get(self, name: str, namespace: str = "") -> Item | None:
        """One of them."""
        with self._lock:
            return self._items.get((namespace, name))

    def _run(self) -> None:
        pause_s = PAUSE_FIRST_S
        while not self._stopped.is_set():
            try:
                version = self._list()
                pause_s = PAUSE_FIRST_S
                self._watch(version)
            except ApiError as error:
                if error.status.code == httpx2.codes.GONE:
                    continue
                self._tell(error)
            except (httpx2.HTTPError, ValueError) as error:  # ValueError: half a line of JSON
                self._tell(error)
            self._stopped.wait(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _list(self) -> str:
        found = self._client.list(self._kind, **self._where)
        items = {_key(item): item for item in map(self._kept, found)}
        with self._lock:
            before, self._items = self._items, dict(items)
        for key, item in before.items():
            if key not in items:
                self._call(self._gone, item)
        for key, item in items.items():
            old = before.get(key)
            if old is None or _version(old) != _version(item):
                self._call(self._changed, item)
        self._once.set()
        if self._synced is not None and not self._stopped.is_set():
            self._synced()
        return str(found.resourceVersion)

    def _watch(self, version: str) -> None:
        for kind, whole in self._client.watch(
            self._kind, server_timeout=WATCH_S, resource_version=version, **self._where
        ):
            if self._stopped.is_set():
                return
            item = self._kept(whole)
            key = _key(item)
            with self._lock:
                if kind == "DELETED":
                    self._items.pop(key, None)
                else:
                    self._items[key] = item
            self._call(self._gone if kind == "DELETED" else self._changed, item)

    def _kept(self, item: Any) -> Item:  # noqa: ANN401 - of the informer's kind
        if self._keep is not None:
            return self._keep(item)
        found: Item = item
        return found

    def _call(self, callback: Callable[[Item], None] | None, item: Item) -> None:
        if callback is not None and not self._stopped.is_set():
            callback(item)

    def _tell(self, error: Exception) -> None:
        if self._log is not None and not self._stopped.is_set():
            why = str(error)[:200] or type(error).__name__
            self._log.warning("watch_broke", kind=self._kind.__name__, message=why)


def _key(item: Any) -> tuple[str, str]:  # noqa: ANN401 - any kind of object
    return item.metadata.namespace or "", item.metadata.name


def _version(item: Any) -> str:  # noqa: ANN401
    return str(item.metadata.resourceVersion)
