"""Use cases over one store: pull, look, verify, pin, remove. What every face calls."""

from modelcache.agent.engine import Engine, StoredFile, StoredModel, VerifyResult
from modelcache.agent.snapshot import Snapshot
from modelcache.transfer.report import ProgressCallback

__all__ = [
    "Engine",
    "ProgressCallback",
    "Snapshot",
    "StoredFile",
    "StoredModel",
    "VerifyResult",
]
