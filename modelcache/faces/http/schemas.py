"""What the API takes and gives, described for people: the models behind `/docs`.

Answers are made from the values of the domain, so nothing is decided here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelcache.agent.memorizing import MemoryPhase
from modelcache.domain.identities import TOKENS_MAX
from modelcache.domain.manifests import ModelId
from modelcache.domain.members import Priority
from modelcache.domain.refs import REF_BYTES_MAX
from modelcache.domain.volumes import MountMode
from modelcache.domain.wanted import (
    LEASE_DEFAULT,
    NOTE_CHARACTERS_MAX,
    PRIORITY_MAX,
    ModelPhase,
)
from modelcache.forecast.estimate import Tier

GLOBS_MAX = 64
_MODEL = "5f0c1e7f9b6f4f0f8a5b6d0a6d9a1f4f2f7c3b1f9f8e7d6c5b4a392817160504"
_WANTED = "9c1185a5c5e9fc54"

Glob = Annotated[str, Field(min_length=1, max_length=512)]


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class Problem(_Answer):
    """What went wrong. `code` is stable; `message` is one line that says what to do."""

    code: str = Field(examples=["not_in_store"])
    message: str = Field(examples=["that is not wanted on this node; ask for it with prefetch"])


class Refusal(_Answer):
    """Every answer that is no success."""

    error: Problem


class WantRequest(BaseModel):
    """Have a model brought to this node, and kept while it is wanted."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "ref": "s3://models/llama-3-70b",
                    "priority": 60,
                    "lease": "pod/default/llama-0",
                    "ttl_s": 3600,
                    "include": ["*.safetensors", "*.json"],
                }
            ]
        },
    )

    ref: str = Field(
        min_length=1,
        max_length=REF_BYTES_MAX,
        description="s3://, gs://, oci://, hf://, https:// or file://, as on the command line.",
    )
    priority: int = Field(
        default=int(Priority.PREWARM),
        ge=0,
        le=PRIORITY_MAX,
        description="10 speculative, 30 declared ahead, 60 a pod is bound here, 90 a pod waits.",
    )
    lease: str = Field(
        default=LEASE_DEFAULT,
        max_length=128,
        description="Who wants it. The same name again replaces its want.",
    )
    ttl_s: float | None = Field(
        default=None, gt=0, description="Seconds until the want ends by itself."
    )
    note: str = Field(default="", max_length=NOTE_CHARACTERS_MAX, description="Why, for people.")
    tenant: str = Field(
        default="", max_length=63, description="Who is charged with it, such as a namespace."
    )
    include: list[Glob] = Field(
        default=[], max_length=GLOBS_MAX, description="Only files that match one of these."
    )
    exclude: list[Glob] = Field(
        default=[], max_length=GLOBS_MAX, description="No files that match one of these."
    )
    refresh: bool = Field(
        default=False, description="Resolve the ref anew, even if the model is warm."
    )


class WantInfo(_Answer):
    """One holder's want. Times are seconds since the epoch."""

    holder: str = Field(examples=["pod/default/llama-0"])
    priority: int = Field(examples=[60])
    since_s: float = Field(examples=[1760000000.0])
    expires_at_s: float | None = Field(examples=[1760003600.0])
    note: str = Field(examples=[""])
    tenant: str = Field(examples=["team-a"])


class WantedModel(_Answer):
    """A wanted model and how far it is. Bytes are of distinct blobs."""

    wanted_id: str = Field(examples=[_WANTED], description="Its name in this API.")
    ref: str = Field(
        examples=["s3://models/llama-3-70b"], description="Without what may be secret in it."
    )
    model_id: str = Field(examples=[_MODEL], description="Empty until the ref is resolved.")
    phase: ModelPhase = Field(examples=[ModelPhase.TRANSFERRING])
    priority: int = Field(examples=[60], description="The highest of its wants.")
    percent: float = Field(examples=[42.5])
    total_bytes: int = Field(examples=[140_000_000_000])
    done_bytes: int = Field(examples=[59_500_000_000])
    files_total: int = Field(examples=[36])
    files_done: int = Field(examples=[12])
    rate_bytes_s: float = Field(examples=[2.1e9])
    eta_s: float | None = Field(examples=[38.3])
    connections: int = Field(examples=[16])
    retries: int = Field(examples=[0])
    sources: dict[str, int] = Field(
        examples=[{"s3://models/llama-3-70b": 3_000_000_000, "peer:node-7": 56_500_000_000}],
        description="Bytes by source.",
    )
    attempts: int = Field(examples=[0], description="Failed in a row.")
    retry_in_s: float | None = Field(examples=[None])
    trouble: Problem | None = Field(examples=[None], description="Why the last attempt failed.")
    path: str = Field(
        examples=[f"/var/lib/modelcache/snapshots/{_MODEL}"],
        description="The snapshot that is here, also while a newer one comes; or empty.",
    )
    wants: list[WantInfo]


class Released(_Answer):
    """Whether there was something to release."""

    released: bool = Field(examples=[True])


class Identity(BaseModel):
    """A pod's service account, as kubelet vouches for it."""

    model_config = ConfigDict(extra="forbid")

    namespace: str = Field(min_length=1, max_length=63)
    account: str = Field(min_length=1, max_length=253)
    tokens: dict[str, str] = Field(
        max_length=TOKENS_MAX, repr=False, description="The account's tokens, by audience."
    )


class VolumeWanted(BaseModel):
    """Show a model, or a folder of it, at a path of this node; read-only."""

    model_config = ConfigDict(extra="forbid")

    target: str = Field(
        min_length=1,
        max_length=4095,
        examples=["/var/lib/kubelet/pods/1b2c/volumes/kubernetes.io~csi/weights/mount"],
        description="An absolute path below one of `agent.volume_roots`. Its parent must exist.",
    )
    ref: str = Field(min_length=1, max_length=REF_BYTES_MAX)
    include: list[Glob] = Field(default=[], max_length=GLOBS_MAX)
    exclude: list[Glob] = Field(default=[], max_length=GLOBS_MAX)
    sub_path: str = Field(default="", max_length=3072, description="A folder of the model.")
    priority: int = Field(default=int(Priority.MOUNTED), ge=0, le=PRIORITY_MAX)
    note: str = Field(default="", max_length=NOTE_CHARACTERS_MAX, description="For whom.")
    tenant: str = Field(
        default="", max_length=63, description="Who is charged with it, such as a namespace."
    )
    refresh: bool = Field(
        default=False, description="Resolve the ref anew before the volume is published."
    )
    mode: MountMode = Field(
        default=MountMode.FULL,
        description="`stream`: show it before all of it is here; what is read comes first.",
    )
    credentials: dict[str, str] = Field(
        default={},
        max_length=32,
        repr=False,
        description="A secret's keys and values, which must be good for the model at its origin.",
    )
    identity: Identity | None = Field(
        default=None, description="Of the pod; stands for credentials where there are none."
    )


class VolumeInfo(_Answer):
    """A published volume."""

    volume_id: str = Field(examples=["csi-5f0c1e7f"])
    target: str
    model_id: ModelId = Field(examples=[_MODEL])
    ref: str = Field(examples=["s3://models/llama-3-70b"])
    sub_path: str = Field(examples=[""])
    since_s: float = Field(examples=[1760000000.0], description="Seconds since the epoch.")
    mode: MountMode = Field(examples=["full"], description="How it is mounted.")


class VolumeUsage(VolumeInfo):
    """A published volume, and what is in it."""

    mounted: bool = Field(examples=[True])
    size_bytes: int = Field(examples=[140_000_000_000])
    files: int = Field(examples=[36])


class Unpublished(_Answer):
    """Whether there was something to take away."""

    unpublished: bool = Field(examples=[True])


class LeaseInfo(_Answer):
    """Why a model is not evicted."""

    kind: str = Field(examples=["agent"])
    note: str = Field(examples=["s3://models/llama-3-70b"])
    pid: int = Field(examples=[4711])


class MemoryUse(_Answer):
    """What of a model is in memory."""

    resident_bytes: int | None = Field(
        examples=[140_000_000_000], description="In the page cache; null where nobody tells."
    )
    copy_bytes: int = Field(examples=[0], description="In a copy on the agent's tmpfs.")
    copy_path: str | None = Field(examples=[None])


class MemoryRequest(BaseModel):
    """How to bring a model into memory."""

    model_config = ConfigDict(extra="forbid")

    locked: bool = Field(default=False, description="Into a copy on the tmpfs, to stay.")


class BytesRequest(BaseModel):
    """Which bytes of a model."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, max_length=4096, examples=["model.safetensors"])
    start: int = Field(ge=0, le=1 << 62)
    end: int = Field(ge=0, le=1 << 62, description="At most 8 MiB behind `start`.")
    wait_s: float = Field(default=0.0, ge=0, le=5, description="For bytes that are not here.")


class MemoryState(MemoryUse):
    """What of a model is in memory, and the last attempt to bring it there."""

    model_id: ModelId = Field(examples=[_MODEL])
    phase: MemoryPhase
    locked: bool
    done_bytes: int = Field(examples=[70_000_000_000])
    total_bytes: int = Field(examples=[140_000_000_000])
    trouble: Problem | None


class Freed(_Answer):
    """How much was let go of."""

    freed_bytes: int = Field(examples=[140_000_000_000])


class StoredModelInfo(_Answer):
    """A model of this node, wanted or not."""

    model_id: ModelId = Field(examples=[_MODEL])
    refs: list[str] = Field(examples=[["s3://models/llama-3-70b"]])
    files: int = Field(examples=[36])
    size_bytes: int = Field(examples=[140_000_000_000])
    present_bytes: int = Field(examples=[140_000_000_000])
    warm: bool = Field(examples=[True])
    last_used_s: float = Field(examples=[1760000000.0])
    leases: list[LeaseInfo]
    verified: dict[str, int] = Field(
        examples=[{"crc64nvme": 140_000_000_000}],
        description="Bytes by the checksum that its origin published; `none`: nothing vouched.",
    )
    path: str | None = Field(examples=[f"/var/lib/modelcache/snapshots/{_MODEL}"])
    memory: MemoryUse


class FileInfo(_Answer):
    """One file of a model."""

    path: str = Field(examples=["model-00001-of-00030.safetensors"])
    size_bytes: int = Field(examples=[4_670_000_000])
    blob: str = Field(examples=[f"sha256-{_MODEL}"])
    present: bool = Field(examples=[True])
    verified: str | None = Field(examples=["crc64nvme"])


class StoredModelDetail(StoredModelInfo):
    """A model with its files."""

    contents: list[FileInfo]


class StoreInfo(_Answer):
    """What the store takes, in bytes."""

    path: str = Field(examples=["/var/lib/modelcache"])
    blobs_bytes: int = Field(examples=[140_000_000_000])
    partial_bytes: int = Field(examples=[0])
    quota_bytes: int = Field(examples=[500_000_000_000])
    free_bytes: int = Field(examples=[1_000_000_000_000])


class NodeStatus(_Answer):
    """The agent, at one glance."""

    node: str = Field(examples=["node-7"])
    version: str = Field(examples=["0.1.0"])
    started_at_s: float = Field(examples=[1760000000.0])
    ready: bool = Field(examples=[True])
    reasons: list[str] = Field(examples=[[]], description="Why it is not ready.")
    draining: bool = Field(examples=[False])
    warnings: list[str] = Field(
        examples=[[]],
        description="What should be changed; it works meanwhile, but not as it could.",
    )
    store: StoreInfo
    wanted: list[WantedModel]


class PeersTable(_Answer):
    """The other nodes of the cell, as this one knows them."""

    enabled: bool = Field(examples=[True], description="Whether this node has peers at all.")
    peers: list[dict[str, Any]] = Field(
        examples=[[{"node": "node-8", "address": "10.0.0.8:9871", "reachable": True}]]
    )


class Drained(_Answer):
    """How draining went."""

    draining: Literal[True] = True
    complete: bool = Field(examples=[True], description="Whether all was over within the time.")


class Resumed(_Answer):
    """That it takes work again."""

    draining: Literal[False] = False
    resumed: bool = Field(examples=[True], description="Whether it was draining.")


class Health(_Answer):
    """It lives."""

    alive: bool = Field(examples=[True])


class Readiness(_Answer):
    """Whether it takes work, and why not."""

    ready: bool = Field(examples=[False])
    reasons: list[str] = Field(examples=[["draining"]])


class PartsInfo(_Answer):
    """Seconds of each part, in the usual case: before any quantile."""

    queue_s: float = Field(examples=[0.0], description="What is fetched here before it.")
    resolve_s: float = Field(examples=[0.3])
    fetch_s: float = Field(examples=[41.2])
    finish_s: float = Field(examples=[0.6], description="Checksums, links, syncs, slow beginnings.")
    mount_s: float = Field(examples=[0.05])
    load_s: float | None = Field(
        examples=[35.0], description="Into memory; null until that was measured or declared."
    )


class Which(StrEnum):
    """Why a node is among the answers."""

    THIS = "this"
    BEST = "best"
    NEW = "new"
    NAMED = "named"


class Basis(StrEnum):
    """What an estimate rests on."""

    MEASURED = "measured"
    DECLARED = "declared"
    UNKNOWN = "unknown"


class Estimate(_Answer):
    """When a model would be ready on one node. Quantiles are seconds from now."""

    which: Which = Field(examples=[Which.THIS])
    node: str = Field(examples=["gpu-7"], description="`new` for a node that is not there yet.")
    tier: Tier = Field(examples=[Tier.WARMING])
    missing_bytes: int = Field(examples=[52_000_000_000])
    ahead_bytes: int = Field(examples=[0], description="Of other models that come before it.")
    holders: int = Field(examples=[2], description="Other nodes that have all of it.")
    fetchers: int = Field(examples=[0], description="Other nodes that fetch it now.")
    p50_s: float | None = Field(examples=[42.1], description="Until a pod can mount it.")
    p90_s: float | None = Field(examples=[55.0])
    loaded_p50_s: float | None = Field(examples=[77.1], description="Until it is in memory.")
    loaded_p90_s: float | None = Field(examples=[98.0])
    basis: Basis = Field(examples=[Basis.MEASURED])
    confident: bool = Field(
        examples=[True], description="Earlier p90s came true 85 to 95 times of a hundred."
    )
    parts: PartsInfo | None


class ScoreInfo(_Answer):
    """How well this node's own starts were predicted: up to 200 that fetched something."""

    starts: int = Field(examples=[200])
    abandoned: int = Field(examples=[3], description="Given up before they were ready.")
    median_error: float | None = Field(examples=[0.08], description="Of the p50, as a share.")
    p50_coverage: float | None = Field(examples=[0.51])
    p90_coverage: float | None = Field(examples=[0.9])
    confident: bool = Field(examples=[True])


class Estimates(_Answer):
    """When a model would be ready, and how far such predictions can be trusted."""

    ref: str = Field(examples=["s3://models/llama-3-70b"])
    model_id: str = Field(examples=[_MODEL])
    size_bytes: int = Field(examples=[140_000_000_000])
    estimates: list[Estimate]
    score: ScoreInfo
