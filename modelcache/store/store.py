"""The store: everything one node has, behind one object.

It owns the files under its root and the locks that keep several processes out of each other's way.
It must not know what a network is. Anything that changes which blobs or models exist happens under
the store mutex, which is held for moments and never while bytes move.

It is a long module because it is the list of what can be done with a store: some fifty methods,
most of them a few lines that name a file and leave the work to a module beside this one. Cutting
the list in two would only have its users ask which half they want.

A model lives through: `begin_model` (manifest stored, lease held: warming), blobs arriving through
`writer` and `small_blobs`, `add_model` (snapshot shown: warm), and in the end `remove_model`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from modelcache.config import StoreSettings
from modelcache.domain.layers import Listing
from modelcache.domain.manifests import Archive, BlobId, Manifest, ModelId, canonical_json
from modelcache.domain.ranges import MIB, ChunkGrid
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.volumes import MountMode, Volume
from modelcache.errors import (
    CorruptData,
    InvalidConfig,
    Leased,
    NotInStore,
    StoreError,
    StoreReadOnly,
    StoreTooNew,
    UsageError,
)
from modelcache.store import (
    files,
    leases,
    listings,
    locks,
    partials,
    receipts,
    references,
    small,
    snapshots,
    staging,
)
from modelcache.store.layout import FORMAT, Layout, fan_out
from modelcache.store.leases import Lease, LeaseInfo
from modelcache.store.partials import Chunks
from modelcache.store.receipts import BlobState, Receipt
from modelcache.store.small import SmallBlobs
from modelcache.store.staging import StagingFolder
from modelcache.store.writer import BlobWriter, WriteMode

PREFIX_MIN: Final = 4  # hex digits of a model id that may stand for all of it
ID_LENGTH: Final = 64
CHUNK_BYTES_MAX: Final = 1024 * MIB  # a receipt has 32 bits for it; hedging wants far less


class Store:
    """See the module. Thread-safe: state is on the disk, under locks."""

    def __init__(self, layout: Layout, settings: StoreSettings, *, writable: bool) -> None:
        self.layout = layout
        self.settings = settings
        self.writable = writable
        self._blobs = f"{layout.blobs}{os.sep}"  # spares thousands of stats a path object each

    @classmethod
    def open(cls, settings: StoreSettings, *, write: bool = True) -> Self:
        """Open the store, making it where there is none and `write` is asked for.

        What killed processes left behind and is whole is taken in. Raises StoreTooNew,
        StoreReadOnly, StoreError, and InvalidConfig for settings that no store can have.
        """
        if settings.chunk_bytes > CHUNK_BYTES_MAX:
            raise InvalidConfig(f"store.chunk_bytes must be at most {CHUNK_BYTES_MAX}")
        layout = Layout(settings.path)
        store = cls(layout, settings, writable=write)
        with files.translated(settings.path):
            if settings.path.exists() and not settings.path.is_dir():
                raise StoreError(f"store {settings.path} is not a folder; name one with --store")
            if write and not layout.marker.exists():
                store._create()
            store._check_format()
            if write:
                if not os.access(layout.root, os.W_OK):
                    raise StoreReadOnly(f"store {layout.root} cannot be written by this user")
                for folder in layout.folders():
                    files.ensure_folder(folder)
                small.adopt(layout)
                staging.sweep(layout)
        return store

    # Blobs

    def has_blob(self, blob: BlobId, size_bytes: int) -> bool:
        """Whether the blob is complete here. One stat; see `blob_state` for more doubt."""
        try:
            status = os.stat(f"{self._blobs}{fan_out(blob)}{os.sep}{blob}")  # noqa: PTH116
        except FileNotFoundError:
            return False
        return status.st_size == size_bytes

    def published(self, blob: BlobId) -> tuple[Path, int]:
        """Where a complete blob is, and its size in bytes. Raises StoreError."""
        path = self.layout.blob(blob)
        with files.translated(path):
            return path, path.stat().st_size

    def blob_state(self, blob: BlobId) -> BlobState:
        """Whether the blob is still the file that was published."""
        return receipts.state(self.layout.blob(blob), self.receipt(blob))

    def receipt(self, blob: BlobId) -> Receipt | None:
        """Chunk hashes and how the origin vouched."""
        return receipts.read(self.layout.blob(blob), self.layout.receipt(blob))

    def renew_receipt(self, blob: BlobId) -> None:
        """Accept the blob's present inode and date: its bytes were hashed and are as published."""
        receipt = self.receipt(blob)
        if receipt is not None and self.writable:
            path = self.layout.blob(blob)
            with files.translated(path):
                receipts.write_file(self.layout.receipt(blob), receipt.of(path.stat()).to_bytes())

    def writer(
        self, blob: BlobId, size_bytes: int, *, mode: WriteMode, replace: bool = False
    ) -> BlobWriter:
        """Begin or continue a blob. Raises BlobBusy, StoreFull, StoreReadOnly.

        A blob that is complete is not begun again: that is BlobBusy too, for somebody else must
        have finished it since the caller looked. `replace` begins anew beside a damaged one.
        """
        grid = ChunkGrid(size_bytes, self.settings.chunk_bytes)
        return BlobWriter(self.layout, blob, grid, mode, replace=replace)

    def small_blobs(self) -> SmallBlobs:
        """A group of small blobs of this process."""
        return SmallBlobs(self.layout, self.settings.chunk_bytes)

    def staging_folder(self) -> StagingFolder:
        """A folder for files whose names are not known yet; close it."""
        return StagingFolder(self.layout, self.settings.chunk_bytes)

    def listing(self, archive: Archive) -> Listing | None:
        """What the archive holds below its root, if it was unpacked here before."""
        return listings.load(self.layout, archive)

    def save_listing(self, archive: Archive, listing: Listing) -> None:
        """Note what the archive holds. Its digest must have been checked."""
        listings.save(self.layout, archive, listing)

    def is_busy(self, blob: BlobId) -> bool:
        """Whether somebody is fetching this blob now. Leaves nothing behind."""
        return partials.is_held(self.layout, blob)

    def has_partial(self, blob: BlobId) -> bool:
        """Whether somebody began this blob."""
        return (self.layout.partial_blob(blob) / partials.JOURNAL).exists()

    def partial_bytes(self, blob: BlobId) -> int:
        """Bytes of a blob under way that are stored, whoever fetches it."""
        return partials.stored_bytes(self.layout, blob)

    def partial_chunks(self, blob: BlobId, known: Chunks | None = None) -> Chunks | None:
        """The chunks of a blob under way that count, whoever fetches it; see `partials.chunks`."""
        return partials.chunks(self.layout, blob, known)

    def partial_data(self, blob: BlobId) -> Path:
        """Where the bytes of a blob under way are."""
        return self.layout.partial_blob(blob) / partials.DATA

    # Models

    def begin_model(self, manifest: Manifest, note: str) -> Lease:
        """Protect a model that is about to be fetched, and write down what it consists of.

        From here on its blobs survive garbage collection, those that are here as well as those
        that come; so ask what is missing only after this.
        """
        with self.mutex(), files.translated(self.layout.manifest(manifest.model_id)):
            lease = leases.hold(self.layout, manifest.model_id, leases.PULL, note)
            try:
                self._write_manifest(manifest)
                self._touch(manifest.model_id)
            except BaseException:
                lease.release()
                raise
        return lease

    def add_model(self, manifest: Manifest) -> Path:
        """Show the snapshot; all blobs must be here. Idempotent; durable on return.

        A snapshot that is there is mended where it does not show the present blobs. Raises
        CorruptData when a blob is missing, StoreError.
        """
        model_id = manifest.model_id
        path = self.layout.snapshot(model_id)
        shown = False
        if not path.is_dir():
            with snapshots.building(self.layout, model_id) as tree:
                snapshots.fill(self.layout, manifest, tree)
                with self.mutex(), files.translated(path):
                    if not self.layout.manifest(model_id).exists():
                        self._write_manifest(manifest)  # somebody has removed the model by force
                    shown = not path.is_dir()
                    if shown:
                        snapshots.show(self.layout, tree, model_id)
        if not shown:
            self.mend_snapshot(manifest)
        self.touch(model_id)
        return path

    def mend_snapshot(self, manifest: Manifest) -> int:
        """Link the files of a shown snapshot to the present blobs; returns how many were not.

        A crash may come between the repair of a blob and this, and people delete files. Raises
        CorruptData when a blob is missing.
        """
        if self.snapshot_path(manifest.model_id) is None:
            return 0
        stale = snapshots.stale_files(self.layout, manifest)
        for file in stale:
            snapshots.relink(self.layout, manifest, file)
        return len(stale)

    def snapshot_path(self, model_id: ModelId) -> Path | None:
        """The tree of a warm model."""
        path = self.layout.snapshot(model_id)
        return path if path.is_dir() else None

    def manifest(self, model_id: ModelId) -> Manifest:
        """What a model consists of. Raises NotInStore, CorruptData, StoreError."""
        path = self.layout.manifest(model_id)
        try:
            with files.translated(path):
                data = path.read_bytes() if path.exists() else None
        except StoreError as error:
            raise CorruptData(f"manifest of model {model_id[:12]} is unreadable") from error
        if data is None:
            raise NotInStore(f"model {model_id[:12]} is not in the store")
        manifest = Manifest.from_json(data)
        if manifest.model_id != model_id:
            raise CorruptData(f"manifest of model {model_id[:12]} was changed; remove and pull it")
        return manifest

    def model_ids(self) -> list[ModelId]:
        """Every model, warm or warming, in a stable order."""
        try:
            names = sorted(path.name for path in self.layout.models.iterdir())
        except FileNotFoundError:
            return []
        return [ModelId(name) for name in names if len(name) == ID_LENGTH]

    def find(self, what: str) -> ModelId:
        """The model meant by an id, a prefix of one, or a ref. Raises NotInStore, UsageError."""
        if "://" in what:
            recalled = self.recall_ref(parse_ref(what))
            if recalled is None:
                raise NotInStore(f"{parse_ref(what).redacted()} was not pulled into this store")
            return recalled[0]
        lowered = what.lower()
        if len(lowered) < PREFIX_MIN or not set(lowered) <= set("0123456789abcdef"):
            raise UsageError(f"{what!r} is neither a ref nor a model id (4 or more hex digits)")
        matching = [model_id for model_id in self.model_ids() if model_id.startswith(lowered)]
        if not matching:
            raise NotInStore(f"no model in this store starts with {lowered}")
        if len(matching) > 1:
            raise UsageError(f"{lowered} means {len(matching)} models; write more digits")
        return matching[0]

    def touch(self, model_id: ModelId) -> None:
        """Note that a model is used now; a store that cannot be written is left alone."""
        if self.writable:
            with suppress(OSError):  # a hint for eviction, and no reason to fail
                self._touch(model_id)

    def last_used_s(self, model_id: ModelId) -> float:
        """Seconds since the epoch; 0 when never."""
        try:
            return self.layout.last_used(model_id).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def save_report(self, model_id: ModelId, report: Mapping[str, Any]) -> None:
        """Keep what a pull reported."""
        with files.translated(self.layout.report(model_id)), suppress(FileNotFoundError):
            files.atomic_write(self.layout.report(model_id), canonical_json(report))

    def report(self, model_id: ModelId) -> dict[str, Any] | None:
        """What the last pull of a model reported."""
        try:
            report: dict[str, Any] = json.loads(self.layout.report(model_id).read_bytes())
        except (OSError, ValueError):
            return None
        return report

    # Refs

    def remember_ref(self, ref: Ref, model_id: ModelId, now_s: float) -> None:
        """Note what a ref was resolved to."""
        references.remember(self.layout, ref, model_id, now_s)

    def recall_ref(self, ref: Ref) -> tuple[ModelId, float] | None:
        """What a ref was resolved to, and when (seconds since the epoch)."""
        return references.recall(self.layout, ref)

    def refs(self) -> dict[ModelId, list[str]]:
        """Every remembered ref by model, as users may see them (without URLs' queries)."""
        return references.all_refs(self.layout)

    # Leases

    def hold(self, model_id: ModelId, kind: str, note: str) -> Lease:
        """Protect a model while this process lives and the lease is not released.

        Raises NotInStore.
        """
        with self.mutex(), files.translated(self.layout.leases):
            if not self.layout.manifest(model_id).exists():
                raise NotInStore(f"model {model_id[:12]} is not in the store")
            return leases.hold(self.layout, model_id, kind, note)

    def pin(self, model_id: ModelId, note: str = "") -> None:
        """Protect a model until it is unpinned. Idempotent."""
        with self.mutex(), files.translated(self.layout.leases):
            leases.pin(self.layout, model_id, note)

    def unpin(self, model_id: ModelId) -> bool:
        """Remove the pin; False if there was none."""
        with self.mutex(), files.translated(self.layout.leases):
            return leases.unpin(self.layout, model_id)

    def keep_volume(self, volume: Volume) -> None:
        """Protect a model while a volume shows it, whoever lives; durable on return. Idempotent.

        Raises NotInStore unless all of the model is here; of one that is streamed, unless it is
        known what it consists of.
        """
        with self.mutex(), files.translated(self.layout.leases):
            known = self.snapshot_path(volume.model_id) is not None or (
                volume.mode is MountMode.STREAM and self.layout.manifest(volume.model_id).exists()
            )
            if not known:
                raise NotInStore(f"model {volume.model_id[:12]} is not in the store")
            leases.keep_volume(self.layout, volume)

    def drop_volume(self, volume: Volume) -> None:
        """End the protection by a volume; durable on return. Idempotent."""
        with self.mutex(), files.translated(self.layout.leases):
            leases.drop_volume(self.layout, volume)

    def volumes(self) -> list[Volume]:
        """Every volume that shows a model of this store."""
        with files.translated(self.layout.leases):
            return leases.volumes(self.layout)

    def leases(self, model_id: ModelId) -> list[LeaseInfo]:
        """Why a model is protected now."""
        return leases.live(self.layout, model_id)

    def remove_model(self, model_id: ModelId, *, force: bool = False) -> int:
        """Remove a model and the blobs that only it held; returns the bytes freed.

        Raises Leased, naming the leases, unless `force`. A crash in the middle leaves blobs that
        garbage collection finds, or a model that is warming again.
        """
        with self.mutex():
            held = self.leases(model_id)
            if held and not force:
                why = ", ".join(f"{lease.kind} {lease.note}".strip() for lease in held)
                raise Leased(f"model {model_id[:12]} is protected ({why}); unpin it or use --force")
            freed = self.drop_model(model_id)
        self.empty_trash()
        return freed

    def drop_model(self, model_id: ModelId) -> int:
        """Make a model disappear, with the blobs that only it holds; returns their bytes.

        The caller has the mutex, has looked at the leases, and empties the trash afterwards.
        """
        try:
            mine = self.manifest(model_id).blobs()
        except (CorruptData, NotInStore):
            mine = {}
        others = self.referenced_blobs(without=model_id)
        freed = 0
        with files.translated(self.layout.root):
            self.trash(self.layout.snapshot(model_id))
            self.trash(self.layout.models / model_id)
            self.trash(self.layout.leases / model_id)
            references.forget(self.layout, model_id)
            for blob in mine:
                if blob not in others:
                    freed += self.drop_blob(blob)
        return freed

    def drop_blob(self, blob: BlobId) -> int:
        """Make a blob and what is there of it disappear; returns the bytes.

        Open files go on being readable. The caller has the mutex, and empties the trash.
        """
        freed = 0
        path = self.layout.blob(blob)
        with suppress(FileNotFoundError):
            freed = path.stat().st_size
            self.trash(path)
        files.unlink(self.layout.receipt(blob))
        return freed + self.drop_partial(blob)

    def drop_partial(self, blob: BlobId) -> int:
        """Delete what is there of a blob under way unless somebody is at it; returns the bytes."""
        folder = self.layout.partial_blob(blob)
        try:
            size = (folder / partials.DATA).stat().st_blocks * 512
        except FileNotFoundError:
            size = 0
        return size if partials.remove_unheld(self.layout, blob) else 0

    def referenced_blobs(self, *, without: ModelId | None = None) -> set[BlobId]:
        """Blobs that some manifest lists. A damaged manifest protects nothing.

        Raises StoreError when one cannot be read: it may be whole, and what it lists is not to be
        deleted for want of a descriptor.
        """
        found: set[BlobId] = set()
        for model_id in self.model_ids():
            if model_id != without:
                try:
                    found.update(self.manifest(model_id).blobs())
                except NotInStore:
                    continue
                except CorruptData as error:
                    if isinstance(error.__cause__, StoreError):
                        raise error.__cause__ from None
        return found

    @contextmanager
    def mutex(self) -> Iterator[None]:
        """Keep every other process and thread from changing what exists. For moments only."""
        with locks.mutex(self.layout):
            yield

    def trash(self, path: Path) -> None:
        """Make a file or tree disappear at once; deleting it may take its time."""
        with suppress(FileNotFoundError):
            files.rename(path, self.layout.trash / f"{path.name}-{secrets.token_hex(4)}")

    def empty_trash(self) -> None:
        """Delete what was made to disappear; another process may be at it too. No mutex needed."""
        with files.translated(self.layout.trash):
            for path in list(self.layout.trash.iterdir()):
                if path.is_dir() and not path.is_symlink():
                    files.remove_tree(path)
                else:
                    files.unlink(path)

    def _write_manifest(self, manifest: Manifest) -> None:
        path = self.layout.manifest(manifest.model_id)
        data = manifest.to_json()
        files.ensure_folder(path.parent)
        try:
            if path.read_bytes() == data:
                return
        except FileNotFoundError:
            pass
        files.atomic_write(path, data)  # also when only the places to fetch from are others

    def _touch(self, model_id: ModelId) -> None:
        path = self.layout.last_used(model_id)
        path.touch(mode=0o600)
        os.utime(path)

    def _create(self) -> None:
        layout = self.layout
        layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in layout.folders():
            # Folders of the same names that are somebody else's would be collected as garbage.
            if folder.is_dir() and any(folder.iterdir()):
                raise StoreError(
                    f"{layout.root} is not a modelcache store, and there is something in {folder}; "
                    "choose another --store"
                )
        for folder in layout.folders():
            files.ensure_folder(folder)
        # The marker comes last: a store without it is made again from the start.
        files.atomic_write(layout.marker, canonical_json({"format": FORMAT}))

    def _check_format(self) -> None:
        try:
            found = json.loads(self.layout.marker.read_bytes())["format"]
        except FileNotFoundError:
            return  # opened for reading before anything was pulled
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self.layout.marker} is damaged; is this a modelcache store?"
            ) from error
        if not isinstance(found, int) or found > FORMAT:
            raise StoreTooNew(
                f"store {self.layout.root} has format {found}, this version knows {FORMAT}; "
                "use a newer modelcache, or another --store"
            )
