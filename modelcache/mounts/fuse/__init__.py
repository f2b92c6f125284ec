"""A read-only filesystem in this process, on the kernel's FUSE protocol itself.

libfuse and its bindings reach neither passthrough nor the resending of requests, which is what
this is for: complete files are read by the kernel without us, and another process may go on with
a mount whose server has died. `protocol` packs and unpacks; `channel` is /dev/fuse; `tree` is what
is shown; `session` answers; `parking` keeps reads that wait; `windows` tells how files are read.
"""

from modelcache.mounts.fuse.channel import FILESYSTEM, Channel, widen_readahead
from modelcache.mounts.fuse.session import Contents, Report, Session
from modelcache.mounts.fuse.tree import Tree

__all__ = ["FILESYSTEM", "Channel", "Contents", "Report", "Session", "Tree", "widen_readahead"]
