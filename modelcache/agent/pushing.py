"""Push: files become a model in a registry.

Layers go side by side, the largest first. Each is asked for before it is sent where that costs
little: when its digest is remembered from an earlier push or known to the store, when it is small,
when another repository may have it, or when the tag already shows a layer of its size. Otherwise
it is sent while it is hashed. To hash all of it first would keep a file of 100 GB from the network
for a minute, only to learn what is seldom so: that the registry has it.

The manifest comes last. Whoever stops before leaves nothing but blobs that no tag shows, and upload
sessions that expire.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from time import monotonic
from typing import Any, Final

from modelcache.agent.clock import wall_clock_s
from modelcache.agent.digests import Digests
from modelcache.agent.gathering import Found
from modelcache.agent.pushes import How, PushedLayer, PushOptions, PushReport
from modelcache.config import Settings
from modelcache.domain.refs import Ref
from modelcache.errors import Cancelled
from modelcache.sources.oci.describing import created_at, describe
from modelcache.sources.oci.outgoing import STOPPED, LayerReader, Outgoing, digest_of
from modelcache.sources.oci.packing import (
    CREATED,
    Document,
    LayerForm,
    Packed,
    config_document,
    layer_sizes,
    manifest_document,
    pack_file,
)
from modelcache.sources.oci.publishing import check_room, publish, shown_under, target_of
from modelcache.sources.oci.registry import Registry
from modelcache.sources.oci.uploads import BlobPusher
from modelcache.transfer.report import FileProgress, Phase, Progress, ProgressCallback

HASH_FIRST_BYTES: Final = 4 << 20  # 3 ms of hashing against the two requests of an upload
TICK_S: Final = 0.1
RATE_OVER_S: Final = 5.0
ACTIVE_MAX: Final = 64
_NO_DIGEST: Final = "sha256:" + 64 * "0"


class Push:
    """One push. Use once."""

    def __init__(
        self,
        settings: Settings,
        ref: Ref,
        options: PushOptions,
        digests: Digests,
        *,
        progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Raises InvalidRef for what cannot be pushed to, InvalidConfig."""
        self._repository, self._tag = target_of(ref)
        self._registry = Registry(
            ref.authority, settings.oci, settings.transfer, plain_http=ref.option("plain-http")
        )
        self._ref = ref
        self._options = options
        self._digests = digests
        self._progress = progress
        self._cancel = cancel
        self._environment = os.environ if environment is None else environment
        self._stop = threading.Event()
        self._pusher = BlobPusher(
            self._registry,
            self._registry.repository(self._repository),
            chunk_bytes=options.chunk_bytes,
            stop=self._stop,
        )
        self._started_s = monotonic()
        self._phase = Phase.RESOLVING
        self._guard = threading.Lock()
        self._layers: list[Outgoing] = []
        self._total_bytes = 0
        self._done_bytes = self._done = self._sent_bytes = 0
        self._active: dict[str, LayerReader] = {}
        self._likely: dict[int, str] = {}  # sizes of layers that the repository seems to have
        self._samples: deque[tuple[float, int]] = deque()

    def run(self, files: Sequence[Found]) -> PushReport:
        """Push these files, which are sorted by name.

        progress is called about ten times a second, in this thread. Raises ModelcacheError;
        Cancelled after `cancel` is set. The tag shows either what it did or all of the new model.
        """
        try:
            return self._run(files)
        finally:
            self._stop.set()
            self._digests.save()
            self._registry.close()

    def _run(self, files: Sequence[Found]) -> PushReport:
        options = self._options
        self._layers = [
            pack_file(
                file.name,
                file.path,
                file.size_bytes,
                packing=options.packing,
                form=options.form,
                digest=file.digest,
            )
            for file in files
        ]
        about = describe(self._repository.rpartition("/")[2], self._layers, self._environment)
        _, unsent = self._documents([Packed(each, _NO_DIGEST) for each in self._layers], about)
        check_room(unsent, f"{self._registry.name}/{self._repository}")
        self._tick()
        before = shown_under(self._pusher, self._tag)
        self._likely = layer_sizes(before.body) if before else {}
        self._total_bytes = sum(layer.size_bytes for layer in self._layers)
        self._phase = Phase.PUSHING
        self._tick()  # before anything is sent: from here on a stop is an orderly one
        pushed = self._all_layers()
        packed = [
            Packed(layer, done.digest) for layer, done in zip(self._layers, pushed, strict=True)
        ]
        config, manifest = self._documents(packed, about)
        self._phase = Phase.PUBLISHING
        self._tick()
        self._send_document(config)
        self._check_cancel()  # the last moment at which stopping means what it says
        publish(self._pusher, self._tag, manifest)
        self._phase = Phase.DONE
        self._tick()
        name = f"oci://{self._registry.name}/{self._repository}:{self._tag}"
        return PushReport(
            reference=f"{name}@{manifest.digest}",
            digest=manifest.digest,
            previous=before.digest if before else None,
            layers=tuple(pushed),
            sent_bytes=self._sent_bytes,
            seconds=monotonic() - self._started_s,
        )

    def _documents(
        self, packed: Sequence[Packed], about: Mapping[str, Mapping[str, Any]]
    ) -> tuple[Document, Document]:
        """Config and manifest of these layers."""
        config = config_document(self._options.packing, packed, about)
        annotations = dict(self._options.annotations)
        created = created_at(self._environment)
        if created:
            annotations.setdefault(CREATED, created)
        return config, manifest_document(self._options.packing, packed, config, annotations)

    # Layers, side by side

    def _all_layers(self) -> list[PushedLayer]:
        """Every layer, in the order of their names. The first failure stops the others."""
        largest_first = sorted(self._layers, key=lambda layer: -layer.size_bytes)
        with ThreadPoolExecutor(self._options.jobs, thread_name_prefix="push") as pool:
            futures = {layer.name: pool.submit(self._one_layer, layer) for layer in largest_first}
            try:
                self._watch(futures.values())
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            return [futures[layer.name].result() for layer in self._layers]

    def _watch(self, futures: Iterable[Future[PushedLayer]]) -> None:
        """Wait for all, or for the first that fails, and raise what it raised."""
        waiting = set(futures)
        while waiting:
            self._tick()
            self._check_cancel()
            done, waiting = wait(waiting, TICK_S, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()

    def _check_cancel(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled(STOPPED)

    def _one_layer(self, layer: Outgoing) -> PushedLayer:
        with LayerReader(layer, self._count, self._stop) as reader:
            with self._guard:
                self._active[layer.name] = reader
            try:
                digest, how = self._bring(reader)
            finally:
                with self._guard:
                    del self._active[layer.name]
            self._learn(reader, digest)
        with self._guard:
            self._done += 1
            self._done_bytes += layer.size_bytes
        return PushedLayer(layer.name, layer.media_type, digest, layer.size_bytes, how)

    def _bring(self, reader: LayerReader) -> tuple[str, How]:
        """Into the repository, by the cheapest way that is open."""
        digest = self._digest_before(reader)
        if digest is not None:
            if self._pusher.has(digest):
                return digest, How.PRESENT
            if any(self._pusher.mount(digest, other) for other in self._elsewhere(digest)):
                return digest, How.MOUNTED
        return self._pusher.send(reader, digest), How.SENT

    def _digest_before(self, reader: LayerReader) -> str | None:
        """The layer's digest, where it is known or to hash it first is likely to pay."""
        layer, status = reader.layer, reader.status
        if layer.digest is not None:
            return layer.digest
        known = self._digests.find(status, _form(layer)) if status else None
        if known is not None:
            return known
        small = layer.size_bytes <= HASH_FIRST_BYTES
        if small or self._options.mount_from or layer.size_bytes in self._likely:
            digest = reader.digest()
            reader.check_unchanged()
            return digest
        return None

    def _elsewhere(self, digest: str) -> list[str]:
        """Other repositories that may have a blob, each once."""
        known = self._digests.repository(self._registry.name, digest)
        names = [*self._options.mount_from, *([known] if known else [])]
        others = dict.fromkeys(self._registry.repository(name) for name in names)
        return [name for name in others if name != self._pusher.repository]

    def _learn(self, reader: LayerReader, digest: str) -> None:
        """What this layer taught, for the next push."""
        layer, status = reader.layer, reader.status
        if status is not None and reader.hashed_bytes == layer.size_bytes:
            self._digests.remember(status, _form(layer), digest, wall_clock_s())
        self._digests.remember_place(self._registry.name, self._pusher.repository, digest)

    def _send_document(self, document: Document) -> None:
        layer = Outgoing("the config", document.media_type, None, 0, head=document.data)
        if not self._pusher.has(document.digest):
            with LayerReader(layer, None, self._stop) as reader:
                self._pusher.send(reader, document.digest)

    # Progress

    def _count(self, size_bytes: int) -> None:
        with self._guard:
            self._sent_bytes += size_bytes

    def _tick(self) -> None:
        if self._progress is None:
            return
        with self._guard:
            readers = list(self._active.values())
            done_bytes, done, sent_bytes = self._done_bytes, self._done, self._sent_bytes
        active = [FileProgress(each.layer.name, each.size_bytes, each.position) for each in readers]
        active.sort(key=lambda file: -file.size_bytes)
        done_bytes += sum(file.done_bytes for file in active)
        rate = self._rate(sent_bytes)
        left = self._total_bytes - done_bytes
        self._progress(
            Progress(
                self._phase,
                str(self._ref),
                monotonic() - self._started_s,
                # None while nothing is sent yet: whoever follows may then stop it at once.
                files_total=0 if self._phase is Phase.RESOLVING else len(self._layers),
                files_done=done,
                total_bytes=self._total_bytes,
                done_bytes=done_bytes,
                rate_bytes_s=rate,
                eta_s=left / rate if rate else None,
                connections=len(active),
                active=tuple(active[:ACTIVE_MAX]),
            )
        )

    def _rate(self, sent_bytes: int) -> float:
        """Bytes a second over the last few."""
        now_s = monotonic()
        self._samples.append((now_s, sent_bytes))
        while len(self._samples) > 1 and now_s - self._samples[0][0] > RATE_OVER_S:
            self._samples.popleft()
        then_s, then_bytes = self._samples[0]
        return (sent_bytes - then_bytes) / (now_s - then_s) if now_s > then_s else 0.0


def _form(layer: Outgoing) -> str:
    """What of a file a digest is of: the file alone, or this tar of it."""
    if not layer.head:
        return LayerForm.RAW
    return f"{LayerForm.TAR} {digest_of(layer.head)}"
