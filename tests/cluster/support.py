"""Objects for tests: nodes, pods bound to them, and waiting for what is to become of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, TypeVar

from lightkube import ApiError, Client
from lightkube.models.core_v1 import Container, ObjectReference, PodSpec, Volume
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Binding, Event, Node, Pod
from msgspec import ValidationError

WAIT_S = 30.0
Found = TypeVar("Found")


def wait_until(look: Callable[[], Found | None], wait_s: float = WAIT_S) -> Found:
    """What `look` finds at last; fails when that is nothing for too long."""
    until_s = monotonic() + wait_s
    while True:
        found = look()
        if found:
            return found
        assert monotonic() < until_s, f"did not come to be: {look}"
        sleep(0.05)


def make_node(client: Client, name: str, **labels: str) -> Node:
    return client.create(Node(metadata=ObjectMeta(name=name, labels=labels)))


def make_pod(
    client: Client,
    name: str,
    *,
    node: str = "",
    annotations: dict[str, str] | None = None,
    volumes: list[Volume] | None = None,
    namespace: str = "default",
    **spec: Any,
) -> Pod:
    """A pod; bound to a node as the scheduler does it, if one is given."""
    pod = client.create(
        Pod(
            metadata=ObjectMeta(name=name, namespace=namespace, annotations=annotations),
            spec=PodSpec(
                containers=[Container(name="main", image="example.test/server")],
                volumes=volumes or [],
                **spec,
            ),
        )
    )
    if node:
        bind(client, pod, node)
    return pod


def bind(client: Client, pod: Pod, node: str) -> None:
    assert pod.metadata is not None
    with suppress(ValidationError):  # what is answered is a Status, which is no Binding
        client.create(
            Binding(
                metadata=ObjectMeta(name=pod.metadata.name, namespace=pod.metadata.namespace),
                target=ObjectReference(apiVersion="v1", kind="Node", name=node),
            )
        )


def delete_pod(client: Client, name: str, namespace: str = "default") -> None:
    """At once, as where no kubelet has to agree."""
    client.delete(Pod, name, namespace=namespace, grace_period=0)


def events_of(client: Client, pod: str, namespace: str = "default") -> dict[str, str]:
    """Messages of a pod's events, by reason."""
    found = client.list(Event, namespace=namespace, fields={"involvedObject.name": pod})
    return {event.reason or "": event.message or "" for event in found}


def remove(client: Client, kind: type[Any], name: str) -> None:
    """Remove an object if it is there."""
    try:
        client.delete(kind, name)
    except ApiError as error:
        if error.status.code != 404:
            raise
