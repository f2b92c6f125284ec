"""One pull: resolve, make room, transfer, publish, remember."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic
from typing import TypeVar

import xxhash

from modelcache.agent.clock import wall_clock_s
from modelcache.agent.fetching import Fetching
from modelcache.agent.repairing import Repair
from modelcache.agent.snapshot import Snapshot
from modelcache.agent.surroundings import Surroundings
from modelcache.config import BLOCK_BYTES, Settings
from modelcache.domain.manifests import BlobId, File, Manifest, ModelId
from modelcache.domain.mirrors import parse_rewrites, places
from modelcache.domain.places import Scheme
from modelcache.domain.refs import Ref
from modelcache.errors import Cancelled, CorruptData, SourceRefused, SourceUnavailable
from modelcache.sources.opening import open_source
from modelcache.sources.source import Source
from modelcache.store import BlobState, Store, room
from modelcache.store import repair as repairs
from modelcache.transfer.report import Phase, ProgressCallback

Answer = TypeVar("Answer")


def pull_from_any(
    settings: Settings,
    store: Store,
    ref: Ref,
    progress: ProgressCallback | None,
    cancel: threading.Event | None,
    *,
    around: Surroundings | None = None,
) -> Snapshot:
    """Pull from the first of the ref's mirrors, and last its own place, that can give the model.

    What one of them has brought before it failed is kept. Raises what the last one raised.
    """

    def pull(place: Ref, passed: list[str]) -> Snapshot:
        chosen = settings_at(place, ref, settings)
        one = Pull(chosen, store, ref, progress, cancel, around=around)
        one.place = place
        one.report.events += passed
        return one.run()

    return first_of(settings, ref, pull)


def resolve_from_any(settings: Settings, ref: Ref) -> Manifest:
    """Only resolve, likewise."""

    def resolve(place: Ref, _: list[str]) -> Manifest:
        return open_source(place.origin(), settings_at(place, ref, settings)).resolve(place)

    return first_of(settings, ref, resolve)


def settings_at(place: Ref, ref: Ref, settings: Settings) -> Settings:
    """The settings for a place of a ref: where mirrors may be, settings have said, and no ref."""
    if place == ref:
        return settings
    return replace(settings, transfer=replace(settings.transfer, refused_networks=()))


def first_of(settings: Settings, ref: Ref, ask: Callable[[Ref, list[str]], Answer]) -> Answer:
    """The first answer of the places of a ref: its mirrors, and last its own.

    ask: a place, and why those before it gave none. Raises what the last one raised.
    """
    asked = places(ref, parse_rewrites(settings.mirrors.rewrite), only=settings.mirrors.only)
    passed: list[str] = []
    for place in asked:
        try:
            return ask(place, passed)
        except (SourceUnavailable, SourceRefused, CorruptData) as error:
            if place is asked[-1]:
                if passed:
                    error.args = (f"{error.message} ({'; '.join(passed)})",)
                raise
            passed.append(f"mirror {place.redacted()} passed over: {error.message}")
    raise AssertionError("there is always a place to ask")


class Pull(Fetching):
    """One pull, from ref to snapshot."""

    reader_follows = True  # a pull is asked for by whom it keeps waiting

    def run(self) -> Snapshot:
        """See Engine.pull."""
        cpu_before = os.times()
        self._tick()
        source = open_source(self.place.origin(), self.settings)
        manifest = self._resolve(source)
        self.assemblies = manifest.assemblies
        self.report.notes += manifest.notes
        self.report.resolving_s = monotonic() - self._started_s
        if not manifest.archives:
            return self._bring(manifest, source, cpu_before)
        self.manifest = manifest
        from modelcache.agent.unpacking.flow import unpacked  # noqa: PLC0415 - only packed models

        self._stop_here()
        with unpacked(self, source, manifest) as files:
            return self._bring(files, source, cpu_before)

    def _resolve(self, source: Source) -> Manifest:
        """What the ref means now, to all nodes alike."""
        peers = self.around.peers
        if peers is None or self.place.scheme is Scheme.FILE:
            return source.resolve(self.place)
        manifest, told = peers.resolve(
            self.place,
            lambda: source.resolve(self.place),
            for_pods=bool(self.settings.transfer.refused_networks),
        )
        if told:
            self.report.notes.append("another node has told what the ref means")
        return manifest

    def _bring(self, manifest: Manifest, source: Source, cpu_before: os.times_result) -> Snapshot:
        """Make a model of files warm."""
        self.manifest = manifest
        self.report.model_id = manifest.model_id
        self.report.files = len(manifest.blobs())
        self._tick()  # from here on a stop must leave things in order
        self._stop_here()
        warm = self._already_warm(manifest)
        if warm is not None:
            return warm
        with self.store.begin_model(manifest, self.report.ref):
            # The same model may have been resolved before from other keys; ids are equal then.
            missing = self._missing(manifest)
            self._need_bytes = sum(file.size_bytes for file in missing)
            self._make_room(manifest, missing)
            if self.around.resolved is not None:
                self.around.resolved(manifest)
            self._add_empty(missing)
            transfer_s = monotonic()
            self.fetch([file for file in missing if file.size_bytes], source)
            publishing_s = monotonic()
            self.report.transfer_s += publishing_s - transfer_s
            self._phase = Phase.PUBLISHING
            path = self.store.add_model(manifest)
            self.store.remember_ref(self.ref, manifest.model_id, wall_clock_s())
            self._write_report(cpu_before, publishing_s)
        self._phase = Phase.DONE
        self._tick()
        return Snapshot(
            path,
            manifest.model_id,
            self.report.ref,
            fetched_bytes=self.report.fetched_bytes,
            report=self.report,
        )

    def _stop_here(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("stopped before anything was fetched")

    def _already_warm(self, manifest: Manifest) -> Snapshot | None:
        """The snapshot, if it is there and every blob is still the file that was published."""
        path = self.store.snapshot_path(manifest.model_id)
        if path is None or self._brought_bytes:
            return None
        blobs = manifest.blobs()
        for blob, file in blobs.items():
            if file.size_bytes and self.store.blob_state(blob) is not BlobState.INTACT:
                return None
        self.store.remember_ref(self.ref, manifest.model_id, wall_clock_s())
        self.store.touch(manifest.model_id)
        self._present_bytes = sum(file.size_bytes for file in blobs.values())
        self.report.total_bytes = self.report.present_bytes = self._present_bytes
        self.report.wall_s = monotonic() - self._started_s
        self._phase = Phase.DONE
        self._tick()
        return Snapshot(path, manifest.model_id, self.report.ref, report=self.report)

    def _missing(self, manifest: Manifest) -> list[File]:
        """Blobs to fetch. One that was changed behind our back is mended, not trusted."""
        missing: list[File] = []
        damaged: dict[BlobId, list[int]] = {}
        for blob, file in manifest.blobs().items():
            self.report.total_bytes += file.size_bytes
            if not self.store.has_blob(blob, file.size_bytes):
                missing.append(file)
                continue
            self._present_bytes += file.size_bytes
            if self.store.blob_state(blob) is not BlobState.INTACT:
                bad = repairs.bad_chunks(self.store, blob, file.size_bytes)
                if bad:
                    damaged[blob] = bad
                else:
                    self.store.renew_receipt(blob)
        self._present_bytes = max(0, self._present_bytes - self._brought_bytes)
        self.report.present_bytes = self._present_bytes
        if damaged:
            Repair(self.settings, self.store, manifest, damaged, self._progress).run()
        return missing

    def _make_room(self, manifest: Manifest, missing: Sequence[File]) -> None:
        need = sum(
            file.size_bytes
            for file in missing
            if file.size_bytes <= BLOCK_BYTES or not self.store.has_partial(file.blob)
        )
        if need:
            room.reserve(self.store, need, keep=manifest.model_id, now_s=wall_clock_s())

    def _add_empty(self, missing: Sequence[File]) -> None:
        """Empty files need no origin."""
        empty = {file.blob for file in missing if not file.size_bytes}
        if empty:
            with self._small_blobs() as small:
                for blob in empty:
                    nothing = memoryview(b"")
                    digest = xxhash.xxh3_128_digest(nothing)
                    small.add(blob, nothing, xxh3=digest, verified="size")

    def _write_report(self, cpu_before: os.times_result, publishing_s: float) -> None:
        cpu_after = os.times()
        report = self.report
        report.cpu_s = cpu_after.user + cpu_after.system - cpu_before.user - cpu_before.system
        report.fetched_bytes = sum(part.received_bytes for part in report.sources.values())
        report.wall_s = monotonic() - self._started_s
        report.publishing_s = monotonic() - publishing_s
        self.store.save_report(ModelId(report.model_id), report.to_json())
