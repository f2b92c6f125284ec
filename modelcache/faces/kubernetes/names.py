"""Names that stand in clusters' objects. They are fixed: manifests of users hold them."""

from __future__ import annotations

from typing import Final

GROUP: Final = "modelcache.io"
VERSION: Final = "v1alpha1"
FIELD_MANAGER: Final = "modelcache"
CSI_DRIVER: Final = "csi.modelcache.io"
MODELPACK_REFERENCE: Final = "model.csi.modelpack.org/reference"

MODELS: Final = "modelcache.io/models"
PRIORITY: Final = "modelcache.io/priority"
MODE: Final = "modelcache.io/mode"
PULL_SECRET: Final = "modelcache.io/pull-secret"  # noqa: S105 - an annotation's name
CONTAINERS: Final = "modelcache.io/containers"
KSERVE: Final = "modelcache.io/kserve"
"""On an InferenceService or its pods: `true` for having its storage URI as a model of ours."""
STORAGE_URI: Final = "modelcache.io/storage-uri"
"""What KServe was to download, on pods for which we have it instead; for people to read."""
INJECTED: Final = "modelcache.io/injected"
POD_LABEL: Final = "modelcache.io/pod"
"""Of pods that the webhook has changed, with the value `true`: annotations cannot be selected."""
GATE_TIMEOUT: Final = "modelcache.io/gate-timeout"
GATE: Final = "modelcache.io/weights"
WEIGHTS_READY: Final = "modelcache.io/WeightsReady"
AGENT_READY: Final = "modelcache.io/AgentReady"
WARM_PREFIX: Final = "warm.modelcache.io/"
"""Of node labels; then the first 12 hex digits of a model id. The value is the percentage."""
WARM_DIGITS: Final = 12


def warm_label(model_id: str) -> str:
    """The label that says how much of a model a node has."""
    return f"{WARM_PREFIX}{model_id[:WARM_DIGITS]}"


def warm_grade(percent: float) -> int:
    """The label's value, in quarters, so that a node's labels change rarely: 0, 25, 50, 75, 100."""
    return min(100, max(0, int(percent) // 25 * 25))
