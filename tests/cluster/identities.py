"""Accounts with roles, and their pods' volumes asked for as kubelet does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from lightkube import ApiError, Client
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace, ServiceAccount

from modelcache.domain.identities import TOKENS
from tests.csi.driver import Driver, mount_capability

ROLES = {
    "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/models",
    "iam.gke.io/gcp-service-account": "models@project.iam.gserviceaccount.com",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A driver, and accounts whose tokens it is given. audience: of those tokens."""

    client: Client
    driver: Driver
    pods: Path
    ref: str
    audience: str

    def publish(self, target: str, account: str, *, in_secrets: bool = False) -> None:
        """As kubelet does it for a pod of this account."""
        namespace, name = account.split("/")
        asked = ServiceAccount.Token.from_dict(
            {"metadata": {}, "spec": {"audiences": [self.audience]}}
        )
        found: Any = self.client.create(asked, name, namespace=namespace)
        token = {"token": found.status.token, "expirationTimestamp": "2100-01-01T00:00:00Z"}
        tokens = {TOKENS: json.dumps({self.audience: token})}
        self.driver.ask(
            "NodePublishVolume",
            volume_id=target,
            target_path=str(self.pods / target),
            volume_capability=mount_capability(),
            volume_context={
                "model": self.ref,
                "csi.storage.k8s.io/pod.namespace": namespace,
                "csi.storage.k8s.io/serviceAccount.name": name,
                **({} if in_secrets else tokens),
            },
            secrets=tokens if in_secrets else {},
        )

    def refused(self, target: str, account: str) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            self.publish(target, account)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, caught.value.details()
        assert not (self.pods / target).exists()
        return str(caught.value.details())


def make_accounts(client: Client, namespace: str) -> None:
    """Two with roles, of which one may read; one without."""
    try:
        client.create(Namespace(metadata=ObjectMeta(name=namespace)))
    except ApiError as error:
        if error.status.code != 409:
            raise
        return
    for name, roles in (("reader", ROLES), ("other", ROLES), ("nobody", {})):
        client.create(
            ServiceAccount(metadata=ObjectMeta(name=name, namespace=namespace, annotations=roles))
        )
