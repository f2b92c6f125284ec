"""Fixtures: a real API server, and webhooks that it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from lightkube import ApiError, Client
from lightkube.models.admissionregistration_v1 import (
    MutatingWebhook,
    RuleWithOperations,
    WebhookClientConfig,
)
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Namespace

from tests.cluster.conftest import client, plane

__all__ = ["client", "plane"]

CONFIGURATION = "modelcache-test"
Register = Callable[..., None]


@pytest.fixture
def namespace(client: Client) -> str:
    """One of its own, so that nobody else's pods go through the webhook."""
    made = client.create(Namespace(metadata=ObjectMeta(generateName="hook-")))
    assert made.metadata is not None
    assert made.metadata.name is not None
    return made.metadata.name


@pytest.fixture
def register(client: Client, namespace: str) -> Iterator[Register]:
    """Have the API server call a URL for the namespace's pods."""

    def registered(url: str, ca: str | None, *, policy: str = "Ignore", again: str = "Never"):
        client.create(
            MutatingWebhookConfiguration(
                metadata=ObjectMeta(name=CONFIGURATION),
                webhooks=[
                    MutatingWebhook(
                        name="pods.modelcache.io",
                        admissionReviewVersions=["v1"],
                        sideEffects="None",
                        clientConfig=WebhookClientConfig(url=f"{url}/mutate", caBundle=ca),
                        failurePolicy=policy,
                        reinvocationPolicy=again,
                        matchPolicy="Equivalent",
                        timeoutSeconds=5,
                        namespaceSelector={
                            "matchLabels": {"kubernetes.io/metadata.name": namespace}
                        },
                        rules=[
                            RuleWithOperations(
                                apiGroups=[""],
                                apiVersions=["v1"],
                                operations=["CREATE"],
                                resources=["pods"],
                            )
                        ],
                    )
                ],
            )
        )

    yield registered
    with forgiving(404):
        client.delete(MutatingWebhookConfiguration, CONFIGURATION)


@contextmanager
def forgiving(code: int) -> Iterator[None]:
    """Let an answer pass."""
    try:
        yield
    except ApiError as error:
        if error.status.code != code:
            raise
