"""Showing a warm model at a path: read-only bind mounts of its snapshot.

A mount outlives whoever made it. It must not know why a model is shown, nor to whom.
"""

from modelcache.mounts.bind import bind_read_only, unmount
from modelcache.mounts.table import Mounted, mounts_at, mounts_below

__all__ = ["Mounted", "bind_read_only", "mounts_at", "mounts_below", "unmount"]
