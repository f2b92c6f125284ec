"""Mending damaged blobs: fetch the bad chunks again, and only those."""

from __future__ import annotations

from collections.abc import Sequence

from modelcache.agent.fetching import Fetching
from modelcache.config import BLOCK_BYTES, Settings
from modelcache.domain.layers import layer_of
from modelcache.domain.manifests import BlobId, File, Manifest, ModelId
from modelcache.domain.refs import parse_ref
from modelcache.errors import ModelcacheError
from modelcache.sources.opening import open_source
from modelcache.sources.source import Source
from modelcache.store import Store, snapshots
from modelcache.store import repair as repairs
from modelcache.transfer.report import ProgressCallback


class Repair(Fetching):
    """Fetch the bad chunks of complete blobs again, and only those."""

    reader_follows = False

    def __init__(
        self,
        settings: Settings,
        store: Store,
        manifest: Manifest,
        damaged: dict[BlobId, list[int]],
        progress: ProgressCallback | None,
    ) -> None:
        super().__init__(settings, store, parse_ref(manifest.origin), progress, None)
        self._model = manifest
        self._damaged = damaged

    def run(self) -> None:
        """Mend every damaged blob, then point the snapshots that hold it at the new file."""
        source = open_source(self.ref, self.settings)
        files = [self._model.blobs()[blob] for blob in self._damaged]
        self.report.files = len(files)
        self.report.total_bytes = sum(file.size_bytes for file in files)
        with self.store.begin_model(self._model, "repair"):
            for file in files:
                if file.size_bytes > BLOCK_BYTES and layer_of(self._model, file) is None:
                    self._begin(file)
            self._add_empty_again(files)
            members = [file for file in files if layer_of(self._model, file) is not None]
            if members:
                self._mend_members(members, source)
            self.fetch([file for file in files if file.size_bytes and file not in members], source)
            for model_id in self.store.model_ids():
                self._relink(model_id)

    def _mend_members(self, members: Sequence[File], source: Source) -> None:
        from modelcache.agent.unpacking.mending import (  # noqa: PLC0415 - only for packed models
            mend_members,
        )

        mend_members(self, source, self._model, [file for file in members if file.size_bytes])

    def _begin(self, file: File) -> None:
        """Set up a partial with the good chunks; the pull then resumes it."""
        if self.store.has_blob(file.blob, file.size_bytes):
            bad = self._damaged[file.blob]
            mode = self.write_mode(file.size_bytes)
            repairs.reopen(self.store, file.blob, file.size_bytes, bad, mode=mode).close()

    def _add_empty_again(self, files: Sequence[File]) -> None:
        with self._small_blobs() as small:
            for file in files:
                if not file.size_bytes:
                    small.add(file.blob, memoryview(b""), xxh3=b"", verified="size")

    def _relink(self, model_id: ModelId) -> None:
        try:
            manifest = self.store.manifest(model_id)
        except ModelcacheError:
            return  # another model's trouble, and verified on its own
        for file in manifest.files:
            if file.blob in self._damaged:
                snapshots.relink(self.store.layout, manifest, file)
