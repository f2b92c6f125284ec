"""Routes about models: those that are wanted, and those that the store has."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from modelcache.agent import StoredModel
from modelcache.agent.daemon import Daemon
from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import WANTED_ID_DIGITS, WantedStatus
from modelcache.faces.http.schemas import (
    FileInfo,
    LeaseInfo,
    MemoryUse,
    Released,
    StoredModelDetail,
    StoredModelInfo,
    WantedModel,
    WantRequest,
)
from modelcache.faces.http.streaming import WAIT_MAX_S, Closing, wait_settled

WantedName = Annotated[
    str, Path(pattern=rf"^[0-9a-f]{{{WANTED_ID_DIGITS}}}$", description="A `wanted_id`.")
]
ModelName = Annotated[
    str, Path(pattern="^[0-9a-f]{4,64}$", description="A model id, or its first digits.")
]


def models_routes(daemon: Daemon, closing: Closing) -> APIRouter:
    """The routes below `/models`."""
    router = APIRouter(prefix="/models", tags=["models"])
    node = daemon.node

    @router.get("")
    def list_models() -> list[StoredModelInfo]:
        """Every model of the store, warm or warming, wanted or not."""
        return [_stored(model) for model in daemon.engine.models()]

    @router.get("/wanted")
    def list_wanted() -> list[WantedModel]:
        """Every wanted model and how far it is, the most urgent first."""
        return [wanted(status) for status in node.statuses()]

    @router.post("/wanted", status_code=202)
    def want(request: WantRequest) -> WantedModel:
        """Want a model: it is brought here in its turn, and kept until it is released.

        Idempotent for a ref (with its filters) and a lease's name. What is wanted outlives a
        restart of the agent. A failed model that is asked for again is tried again at once.
        """
        ref = parse_ref(request.ref).filtered(request.include, request.exclude)
        node.want(
            ref,
            priority=request.priority,
            lease=request.lease,
            ttl_s=request.ttl_s,
            note=request.note,
            tenant=request.tenant,
            refresh=request.refresh,
        )
        return wanted(node.status(ref))

    @router.get("/wanted/{wanted_id}")
    async def get_wanted(
        wanted_id: WantedName,
        wait_s: Annotated[
            float,
            Query(ge=0, le=WAIT_MAX_S, description="Answer when it is warm or failed, or then."),
        ] = 0.0,
    ) -> WantedModel:
        """One wanted model; with `wait_s`, when there is something to tell."""
        if not wait_s:
            return wanted(node.status_id(wanted_id))
        status = await wait_settled(node.events, closing, lambda: node.status_id(wanted_id), wait_s)
        return wanted(status)

    @router.delete("/wanted/{wanted_id}")
    def release(
        wanted_id: WantedName,
        lease: Annotated[
            str | None,
            Query(max_length=128, description="Whose want ends; everybody's without."),
        ] = None,
    ) -> Released:
        """Release a model. It stays in the store until its room is needed."""
        return Released(released=node.release_id(wanted_id, lease))

    @router.get("/{model_id}")
    def get_model(model_id: ModelName) -> StoredModelDetail:
        """One model of the store, with its files."""
        model, files = daemon.engine.show(model_id)
        contents = [
            FileInfo(
                path=item.file.path,
                size_bytes=item.file.size_bytes,
                blob=item.file.blob,
                present=item.present,
                verified=item.verified,
            )
            for item in files
        ]
        return StoredModelDetail(**_stored(model).model_dump(), contents=contents)

    return router


def wanted(status: WantedStatus) -> WantedModel:
    """As it is answered."""
    return WantedModel.model_validate(status.to_json())


def _stored(model: StoredModel) -> StoredModelInfo:
    return StoredModelInfo(
        model_id=model.model_id,
        refs=list(model.refs),
        files=model.files,
        size_bytes=model.size_bytes,
        present_bytes=model.present_bytes,
        warm=model.warm,
        last_used_s=model.last_used_s,
        leases=[LeaseInfo(kind=each.kind, note=each.note, pid=each.pid) for each in model.leases],
        verified=model.verified,
        path=None if model.path is None else str(model.path),
        memory=MemoryUse(
            resident_bytes=model.memory.resident_bytes,
            copy_bytes=model.memory.copy_bytes,
            copy_path=str(model.memory.copy_path) if model.memory.copy_path else None,
        ),
    )
