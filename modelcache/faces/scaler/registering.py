"""The APIService that has the API server send questions about external metrics to us.

A cluster has one for each version of a group. Where it is somebody else's, such as KEDA's or a
Prometheus adapter's, it is left alone, and nobody asks us.
"""

from __future__ import annotations

import base64
from typing import Final

import httpx2
from lightkube import ApiError, Client
from lightkube.resources.apiregistration_v1 import APIService
from lightkube.types import PatchType

from modelcache.faces.logs import Log
from modelcache.faces.scaler.metrics_api import GROUP, VERSION

NAME: Final = f"{VERSION}.{GROUP}"


class RegisteredTrust:
    """Has the API server trust us where the APIService names our Service."""

    def __init__(self, client: Client, service: str, namespace: str, log: Log) -> None:
        self._client = client
        self._service, self._namespace = service, namespace
        self._log = log
        self._told = ""

    @property
    def what(self) -> str:
        """The object."""
        return f"APIService {NAME}"

    def __call__(self, bundle: bytes) -> None:
        """Bring its bundle up to date. Raises what the client does."""
        try:
            found = self._client.get(APIService, NAME)
        except ApiError as error:
            if error.status.code != httpx2.codes.NOT_FOUND:
                raise
            self._once("there is none; HorizontalPodAutoscalers cannot ask")
            return
        spec = found.spec
        service = spec.service if spec is not None else None
        mine = (self._service, self._namespace)
        if spec is None or service is None or (service.name, service.namespace) != mine:
            self._once("it is somebody else's; HorizontalPodAutoscalers ask them")
            return
        self._told = ""
        wanted = base64.b64encode(bundle).decode()
        if spec.caBundle != wanted:
            change = {"spec": {"caBundle": wanted}}
            self._client.patch(APIService, NAME, change, patch_type=PatchType.MERGE)

    def _once(self, message: str) -> None:
        if self._told != message:
            self._told = message
            self._log.warning("external_metrics_not_registered", name=NAME, message=message)
