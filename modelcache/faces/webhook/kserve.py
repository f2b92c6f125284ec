"""Pods of KServe's InferenceServices: their `storageUri` as models of ours, not as a download.

KServe's webhook gives such a pod an init container that downloads, or a container that is the model
(a "modelcar"), and an empty folder for it. Where the InferenceService asks for it by annotation,
those are taken out again and the URI is written into the annotation `modelcache.io/models`, from
which all else follows as for any other pod. What we cannot have is left to KServe, with a warning
that says why. Pure; a pod that was taken over has nothing more to take over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final

from modelcache.domain.places import Scheme
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.storage_uris import is_claim, ref_of
from modelcache.errors import UsageError
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.pods import models_of
from modelcache.faces.webhook.patches import Operation, removing, replacing

SOURCE: Final = "internal.serving.kserve.io/storage-initializer-sourceuri"
READ_ONLY: Final = "storage.kserve.io/readonly"
INITIALIZER: Final = "storage-initializer"
MODELCARS: Final = ("modelcar", "modelcar-init")
VOLUME: Final = "kserve-provision-location"
MOUNT_PATH: Final = "/mnt/models"
# What a Secret holds for the initializer, under the names that volumes' secrets have here.
_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
_STORAGE_SPEC: Final = "STORAGE_CONFIG"
_GOOGLE_KEY: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_LISTS: Final = ("initContainers", "containers", "volumes")

Pod = Mapping[str, Any]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Taken:
    """A pod as it is now, what was changed in it, and what its creator should know."""

    pod: Pod
    operations: tuple[Operation, ...] = ()
    warnings: tuple[str, ...] = ()


def concerns(pod: Pod) -> bool:
    """Whether a pod asks that its storage URI be ours. Raises UsageError for no clear answer."""
    match _annotations(pod).get(names.KSERVE):
        case None | "false":
            return False
        case "true":
            return True
        case other:
            raise UsageError(f"annotation {names.KSERVE} is {other[:20]!r}; write true or false")


def take_over(pod: Pod) -> Taken:
    """The pod with its models as ours; as it was, with a warning, where they cannot be."""
    try:
        found = _found(pod)
        return Taken(pod) if found is None else _without_download(pod, found)
    except UsageError as error:
        why = f"modelcache leaves the storageUri to KServe: {error.message}"
        return Taken(pod, warnings=(why,))


@dataclass(frozen=True, slots=True)
class _Download:
    """What KServe has put into a pod. models: URI and path. env: of what downloads."""

    models: tuple[tuple[str, str], ...]
    containers: tuple[str, ...]
    volume: str
    env: tuple[Mapping[str, Any], ...] = ()


def _annotations(pod: Pod) -> Mapping[str, str]:
    return (pod.get("metadata") or {}).get("annotations") or {}


def _found(pod: Pod) -> _Download | None:
    """What is there to be taken over; None for nothing, as before KServe's webhook was asked."""
    spec, source = pod["spec"], _annotations(pod).get(SOURCE, "")
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    initializer = next((each for each in containers if each["name"] == INITIALIZER), None)
    if initializer is not None:
        arguments = list(initializer.get("args") or ())
        if not arguments or len(arguments) % 2:
            raise UsageError(f"container {INITIALIZER!r} has not the arguments that are known")
        mounted = initializer.get("volumeMounts") or ()
        pairs = tuple(zip(arguments[::2], arguments[1::2], strict=True))
        volume = next((m["name"] for m in mounted if _holds(m["mountPath"], pairs)), VOLUME)
        return _Download(pairs, _users(spec, volume), volume, tuple(initializer.get("env") or ()))
    if any(each["name"] in MODELCARS for each in containers):
        return _Download(((source, MOUNT_PATH),), _users(spec, VOLUME), VOLUME)
    if is_claim(source):
        ref_of(source)  # which says what becomes of claims
    return None


def _holds(path: str, pairs: Sequence[tuple[str, str]]) -> bool:
    inside = path.rstrip("/")
    return all(target == inside or target.startswith(f"{inside}/") for _, target in pairs)


def _users(spec: Mapping[str, Any], volume: str) -> tuple[str, ...]:
    """Containers that see what is downloaded."""
    return tuple(
        container["name"]
        for container in spec.get("containers") or ()
        if container["name"] not in MODELCARS
        and any(mount["name"] == volume for mount in container.get("volumeMounts") or ())
    )


def _without_download(pod: Pod, found: _Download) -> Taken:
    """Raises UsageError where the models cannot be ours."""
    if _annotations(pod).get(READ_ONLY) == "false":
        raise UsageError("its storage is to be writable, which a model is not")
    refs = [(_with_environment(ref_of(uri), found.env), path) for uri, path in found.models]
    after: Json = deepcopy(dict(pod))
    annotations: Json = dict(_annotations(pod))
    annotations.pop(SOURCE, None)  # or KServe's webhook, asked again, would begin anew
    annotations[names.STORAGE_URI] = ",".join(uri.partition("?")[0] for uri, _ in found.models)
    written = [annotations.get(names.MODELS, ""), *(f"{ref}={path}" for ref, path in refs)]
    annotations[names.MODELS] = "\n".join(filter(None, written))
    annotations.setdefault(names.CONTAINERS, ",".join(found.containers))
    secret, warnings = _secret(found.env)
    if secret:
        annotations.setdefault(names.PULL_SECRET, secret)
    elif names.PULL_SECRET in annotations:
        warnings = ()
    models_of(annotations)
    after["metadata"]["annotations"] = annotations
    _strip(after["spec"], found.volume)
    return Taken(after, tuple(_differences(pod, after)), warnings)


def _strip(spec: Json, volume: str) -> None:
    for kind in ("initContainers", "containers"):
        if kind in spec:
            spec[kind] = [
                _unmounted(container, volume)
                for container in spec[kind] or ()
                if container["name"] not in {INITIALIZER, *MODELCARS}
            ]
    spec["volumes"] = [each for each in spec.get("volumes") or () if each["name"] != volume]


def _unmounted(container: Json, volume: str) -> Json:
    mounts = container.get("volumeMounts")
    if not mounts:
        return container
    return {**container, "volumeMounts": [mount for mount in mounts if mount["name"] != volume]}


def _differences(before: Pod, after: Pod) -> Iterator[Operation]:
    for name in sorted(_annotations(before).keys() - _annotations(after).keys()):
        yield removing("metadata", "annotations", name)
    for name, value in _annotations(after).items():
        if _annotations(before).get(name) != value:
            yield replacing(value, "metadata", "annotations", name, add=True)
    for kind in _LISTS:
        if before["spec"].get(kind) != after["spec"].get(kind):
            yield replacing(after["spec"][kind], "spec", kind, add=True)


def _with_environment(ref: Ref, env: Sequence[Mapping[str, Any]]) -> Ref:
    """The ref with what the download's environment says of where its origin is."""
    if ref.scheme is not Scheme.S3:
        return ref
    said = {each["name"]: str(each.get("value") or "") for each in env}
    endpoint = said.get("AWS_ENDPOINT_URL", "")
    if not endpoint and (host := said.get("S3_ENDPOINT", "")):
        endpoint = f"{'http' if said.get('S3_USE_HTTPS') == '0' else 'https'}://{host}"
    anonymous = said.get("awsAnonymousCredential", "").lower() in {"1", "true"}
    told = {
        "endpoint": endpoint,
        "region": said.get("AWS_REGION") or said.get("AWS_DEFAULT_REGION", ""),
        "anonymous": "true" if anonymous else "",
    }
    options = {**{name: value for name, value in told.items() if value}, **dict(ref.options)}
    return parse_ref(str(replace(ref, options=tuple(sorted(options.items())))))


def _secret(env: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """The Secret that the download was to use, if it is one for volumes too; else a warning."""
    found: set[tuple[str, str, str]] = set()
    other = any(each["name"] == _GOOGLE_KEY for each in env)
    for each in env:
        selected = (each.get("valueFrom") or {}).get("secretKeyRef")
        if each["name"] == _STORAGE_SPEC:
            raise UsageError("its place is in a storage secret, which only KServe reads")
        if selected is not None:
            found.add((selected.get("name", ""), each["name"], selected.get("key", "")))
        elif each["name"] in _KEYS:
            other = True
    secrets = {secret for secret, _, _ in found}
    fit = all(name == key and name in _KEYS for _, name, key in found)
    if found and fit and len(secrets) == 1:
        return secrets.pop(), ()
    if not found and not other:
        return "", ()
    warning = (
        "the service account's credentials for the storageUri are not used; name a Secret with "
        f"them in annotation {names.PULL_SECRET}"
    )
    return "", (warning,)
