"""`http(s)://`: a file, or a JSON index of many."""

from modelcache.sources.http.source import HttpSource

__all__ = ["HttpSource"]
