"""Our own kinds of objects. Their schemas are with the chart; here is what the faces fill in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from lightkube.generic_resource import create_global_resource, create_namespaced_resource

from modelcache.faces.kubernetes.names import GROUP, VERSION

NodeModels: Final = create_global_resource(GROUP, VERSION, "NodeModels", "nodemodels")
ModelPrefetch: Final = create_global_resource(GROUP, VERSION, "ModelPrefetch", "modelprefetches")
ModelScale: Final = create_namespaced_resource(GROUP, VERSION, "ModelScale", "modelscales")
ModelScaleCheckpoint: Final = create_namespaced_resource(
    GROUP, VERSION, "ModelScaleCheckpoint", "modelscalecheckpoints"
)


def now_text() -> str:
    """The time as objects hold it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(text: str) -> float:
    """Seconds since the epoch of a time in an object. Raises ValueError."""
    return datetime.fromisoformat(text).timestamp()
