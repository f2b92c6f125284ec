"""The store: blobs, journals, snapshots, leases and eviction, as plain files."""

from modelcache.errors import BlobBusy
from modelcache.store.leases import Lease, LeaseInfo
from modelcache.store.receipts import BlobState, Receipt
from modelcache.store.small import SmallBlobs
from modelcache.store.staging import Staged, StagedFile, StagingFolder
from modelcache.store.store import Store
from modelcache.store.writer import BlobWriter, WriteMode

__all__ = [
    "BlobBusy",
    "BlobState",
    "BlobWriter",
    "Lease",
    "LeaseInfo",
    "Receipt",
    "SmallBlobs",
    "Staged",
    "StagedFile",
    "StagingFolder",
    "Store",
    "WriteMode",
]
