"""Routes about models in memory."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from modelcache.agent.daemon import Daemon
from modelcache.faces.http.models import ModelName
from modelcache.faces.http.schemas import Freed, MemoryRequest, MemoryState


def memory_routes(daemon: Daemon) -> APIRouter:
    """The routes below `/models/{model_id}/memory`."""
    router = APIRouter(prefix="/models/{model_id}/memory", tags=["models"])
    memorizing = daemon.memorizing

    def state(model_id: str) -> MemoryState:
        found, attempt, use = memorizing.look(model_id)
        return MemoryState(
            model_id=found,
            **asdict(attempt),
            resident_bytes=use.resident_bytes,
            copy_bytes=use.copy_bytes,
            copy_path=str(use.copy_path) if use.copy_path else None,
        )

    @router.post("", status_code=202)
    def warm(model_id: ModelName, request: MemoryRequest) -> MemoryState:
        """Bring a warm model into memory; ask how far it is with GET. Idempotent.

        With `locked` into a copy on the agent's tmpfs, which stays until its quota is needed.
        """
        return state(memorizing.begin(model_id, locked=request.locked))

    @router.get("")
    def look(model_id: ModelName) -> MemoryState:
        """What of a model is in memory, and how far an attempt to bring it there is."""
        return state(model_id)

    @router.delete("")
    def drop(model_id: ModelName) -> Freed:
        """Let go of a model's pages and its copy; the disk keeps it."""
        return Freed(freed_bytes=memorizing.drop(model_id))

    return router
