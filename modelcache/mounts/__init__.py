"""Showing a warm model at a path: read-only bind mounts of its snapshot, also over a stream of it.

A mount outlives whoever made it. It must not know why a model is shown, nor to whom.
"""

from modelcache.mounts.bind import bind_read_only, cover, unmount
from modelcache.mounts.table import Mounted, mounts_at, mounts_below, top_at

__all__ = ["Mounted", "bind_read_only", "cover", "mounts_at", "mounts_below", "top_at", "unmount"]
