"""CapacityBuffers: nodes that are to be there before anybody needs them.

Cluster Autoscaler, and Karpenter behind a gate, keep room for as many pods as a buffer says.
A `ModelScale` may name one of its namespace; its replicas are then the warm slots that are wanted.
Only that field is ours, by server-side apply; everything else of a buffer is its owner's, who makes
it. While demand is not known it is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import httpx2
from lightkube import ApiError, Client
from lightkube.generic_resource import create_namespaced_resource
from lightkube.types import PatchType

from modelcache.errors import UsageError
from modelcache.faces.kubernetes.names import FIELD_MANAGER
from modelcache.faces.scaler.cluster import View
from modelcache.faces.scaler.declared import Key
from modelcache.faces.scaler.outlooks import Outlooks

GROUP: Final = "autoscaling.x-k8s.io"
VERSION: Final = "v1beta1"
CapacityBuffer: Final = create_namespaced_resource(
    GROUP, VERSION, "CapacityBuffer", "capacitybuffers"
)


class Buffers:
    """See the module. What was applied is remembered: a round without change asks nothing."""

    def __init__(
        self, client: Client, outlooks: Outlooks, tell: Callable[[Key, Exception], None]
    ) -> None:
        """tell: of what failed; it is tried again in the next round."""
        self._client = client
        self._outlooks = outlooks
        self._tell = tell
        self._applied: dict[Key, int] = {}

    def look(self, view: View) -> None:
        """Apply what has changed."""
        wanted: dict[Key, int] = {}
        for (namespace, name), scale in view.scales.items():
            if not scale.buffer:
                continue
            try:
                slots = self._outlooks.of(scale, view).slots_wanted
            except UsageError:
                continue  # its status says so
            where = (namespace, scale.buffer)
            if slots is not None and self._applied.get(where) != slots:
                self._guarded((namespace, name), where, slots)
            if where in self._applied:
                wanted[where] = self._applied[where]
        self._applied = wanted

    def _guarded(self, key: Key, where: Key, slots: int) -> None:
        try:
            self._apply(where, slots)
        except (ApiError, httpx2.HTTPError) as error:
            self._applied.pop(where, None)
            self._tell(key, error)
        else:
            self._applied[where] = slots

    def _apply(self, where: Key, slots: int) -> None:
        namespace, name = where
        change: dict[str, Any] = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "CapacityBuffer",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": slots},
        }
        self._client.patch(
            CapacityBuffer,
            name,
            change,
            namespace=namespace,
            patch_type=PatchType.APPLY,
            field_manager=FIELD_MANAGER,
            force=True,  # whoever wrote a number by hand has named the buffer here since
        )
