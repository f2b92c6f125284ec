"""Routes about volumes: models shown at paths of this node."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from modelcache.agent.daemon import Daemon
from modelcache.domain.identities import PodIdentity
from modelcache.domain.refs import parse_ref
from modelcache.domain.volumes import VolumeRequest
from modelcache.faces.http.schemas import Unpublished, VolumeInfo, VolumeUsage, VolumeWanted

VolumeName = Annotated[
    str, Path(pattern="^[A-Za-z0-9][A-Za-z0-9._:-]{0,119}$", description="A volume's id.")
]


def volumes_routes(daemon: Daemon) -> APIRouter:
    """The routes below `/volumes`."""
    router = APIRouter(prefix="/volumes", tags=["volumes"])
    volumes = daemon.volumes

    @router.get("")
    def list_volumes() -> list[VolumeInfo]:
        """Every published volume."""
        return [VolumeInfo(**volume.to_json()) for volume in volumes.volumes()]

    @router.get("/{volume_id}")
    def get_volume(volume_id: VolumeName) -> VolumeUsage:
        """One volume, and what is in it."""
        volume, mounted, size_bytes, files = volumes.usage(volume_id)
        return VolumeUsage(**volume.to_json(), mounted=mounted, size_bytes=size_bytes, files=files)

    @router.put("/{volume_id}")
    def publish(volume_id: VolumeName, request: VolumeWanted) -> VolumeInfo:
        """Show a model at a path. Idempotent.

        While the model is not warm the answer is 503 with the code `not_warm_yet` and how far it
        is; it is fetched all the same. Wait for its status, and ask again. With the mode `stream`
        it is shown as soon as it is known what files it has.
        """
        told = request.identity
        volume = volumes.publish(
            VolumeRequest(
                volume_id,
                request.target,
                parse_ref(request.ref).filtered(request.include, request.exclude),
                sub_path=request.sub_path,
                priority=request.priority,
                note=request.note,
                tenant=request.tenant,
                mode=request.mode,
            ),
            refresh=request.refresh,
            credentials=request.credentials,
            identity=None if told is None else PodIdentity(**told.model_dump()),
        )
        return VolumeInfo(**volume.to_json())

    @router.delete("/{volume_id}")
    def unpublish(
        volume_id: VolumeName,
        target: Annotated[str, Query(max_length=4095, description="Where it is.")],
    ) -> Unpublished:
        """Take a volume away. The model stays in the store until its room is needed."""
        return Unpublished(unpublished=volumes.unpublish(volume_id, target))

    return router
