"""`gs://`: Google Cloud Storage, and what speaks its JSON API."""

from modelcache.sources.gcs.source import GcsSource

__all__ = ["GcsSource"]
