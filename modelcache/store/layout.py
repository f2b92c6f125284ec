"""Where everything lies in a store. Paths only; nothing here touches the disk.

store.json                    {"format": 1}
lock                          the store mutex: an flock, held for moments
blobs/<2 hex>/<blob id>       complete and verified, read-only
partial/<blob id>/            data, journal, lock of a blob under way
partial/small-*/              small blobs waiting for their group commit
partial/unpack-*/             members of layers, before it is known whether they are wanted
layers/                       listings: what is in the layers that were unpacked, and their locks
models/<model id>/            manifest.json, report.json, last_used
snapshots/<model id>/         the tree a pod sees: hard links to blobs
refs/<sha256 of ref>.json     which model a ref meant, and when that was asked
leases/<model id>/            reasons not to evict
desired/<wanted id>.json      what the agent is to have here, and for whom
forecast.json                 what the agent has learnt of how long starts take
streams/<sha256 of volume>.json   what the next process has to know of a streaming mount
views/<sha256 of content>/    links into snapshots, laid out as another program wants them
trash/                        on its way out
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import Archive, BlobId, ModelId
from modelcache.domain.refs import Ref

FORMAT: Final = 1
SMALL_PREFIX: Final = "small-"
UNPACK_PREFIX: Final = "unpack-"
RECEIPT_SUFFIX: Final = ".receipt"
LISTING_SUFFIX: Final = ".json"
LOCK_SUFFIX: Final = ".lock"
_ROOT_DIGITS: Final = 16  # hex, of the hash that tells apart listings of one layer


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store."""

    root: Path

    @property
    def marker(self) -> Path:
        """Says which format the store has."""
        return self.root / "store.json"

    @property
    def mutex(self) -> Path:
        """The file whose lock is the store mutex."""
        return self.root / "lock"

    @property
    def blobs(self) -> Path:
        """Complete blobs."""
        return self.root / "blobs"

    @property
    def partial(self) -> Path:
        """Blobs under way."""
        return self.root / "partial"

    @property
    def layers(self) -> Path:
        """What is in layers."""
        return self.root / "layers"

    @property
    def models(self) -> Path:
        """Manifests and reports."""
        return self.root / "models"

    @property
    def snapshots(self) -> Path:
        """Trees of links."""
        return self.root / "snapshots"

    @property
    def refs(self) -> Path:
        """Resolved refs."""
        return self.root / "refs"

    @property
    def leases(self) -> Path:
        """Reasons not to evict."""
        return self.root / "leases"

    @property
    def desired(self) -> Path:
        """What the agent is to have."""
        return self.root / "desired"

    @property
    def streams(self) -> Path:
        """What is known of streaming mounts; made when there is one."""
        return self.root / "streams"

    @property
    def trash(self) -> Path:
        """Renamed away, to be deleted."""
        return self.root / "trash"

    @property
    def forecast(self) -> Path:
        """What the agent has learnt of starts."""
        return self.root / "forecast.json"

    def folders(self) -> tuple[Path, ...]:
        """Every folder a store has from the start."""
        return (
            self.blobs,
            self.partial,
            self.layers,
            self.models,
            self.snapshots,
            self.refs,
            self.leases,
            self.desired,
            self.trash,
        )

    def blob(self, blob: BlobId) -> Path:
        """A complete blob. The folder is named by the first two digits of its hash."""
        return self.blobs / fan_out(blob) / blob

    def receipt(self, blob: BlobId) -> Path:
        """Its receipt, where that is not kept in an extended attribute."""
        return self.blobs / fan_out(blob) / f"{blob}{RECEIPT_SUFFIX}"

    def partial_blob(self, blob: BlobId) -> Path:
        """Folder of a blob under way."""
        return self.partial / blob

    def listing(self, archive: Archive) -> Path:
        """What is in a layer, below one root."""
        root = sha256(archive.root.encode()).hexdigest()[:_ROOT_DIGITS]
        return self.layers / f"{archive.layer.blob}.{root}{LISTING_SUFFIX}"

    def layer_lock(self, layer: BlobId) -> Path:
        """Locked by who unpacks the layer."""
        return self.layers / f"{layer}{LOCK_SUFFIX}"

    def manifest(self, model_id: ModelId) -> Path:
        """What the model is made of."""
        return self.models / model_id / "manifest.json"

    def report(self, model_id: ModelId) -> Path:
        """Where the time of its last pull went."""
        return self.models / model_id / "report.json"

    def last_used(self, model_id: ModelId) -> Path:
        """A file whose modification time is the model's last use."""
        return self.models / model_id / "last_used"

    def snapshot(self, model_id: ModelId) -> Path:
        """The tree a pod sees."""
        return self.snapshots / model_id

    def ref(self, ref: Ref) -> Path:
        """What a ref was resolved to."""
        return self.refs / f"{sha256(str(ref).encode()).hexdigest()}.json"


def fan_out(blob: BlobId) -> str:
    """Two hex digits that spread blobs over 256 folders."""
    return blob.rpartition("-")[2][:2]
