"""`hf://`: the Hugging Face hub, and every mirror that speaks its API."""

from modelcache.sources.hf.source import HfSource

__all__ = ["HfSource"]
