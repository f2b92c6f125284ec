"""Unpacking compressed layers while they arrive, and taking their members into the store.

    layer's bytes, in order ─► streams ─► pipe ─► tar ─► members ─► staged files ─► blobs
                 (workers of the transfer)  │  (a thread per layer)

`layer` joins these for one layer; `flow` does it for a manifest, and `mending` for damaged files.
"""
