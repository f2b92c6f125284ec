"""The store: blobs, journals, snapshots, leases and eviction, as plain files."""
