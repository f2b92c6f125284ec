"""The settings: one frozen dataclass for each group, and each field with what it means."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from modelcache.domain.addresses import EVERYWHERE, parse_address
from modelcache.domain.listening import default_socket
from modelcache.domain.members import NodeId, is_node_id
from modelcache.domain.ranges import CHUNK_BYTES_DEFAULT, MIB
from modelcache.errors import InvalidConfig

BLOCK_BYTES: Final = 2 * MIB  # one read, one hash, one write; divides every chunk size


class IoMode(StrEnum):
    """How weights are written: past the page cache, through it, or as the moment suggests."""

    DIRECT = "direct"
    BUFFERED = "buffered"
    AUTO = "auto"


class LocalCopy(StrEnum):
    """How `file://` models enter the store."""

    REFLINK = "reflink"
    HARDLINK = "hardlink"
    COPY = "copy"


class AccessMode(StrEnum):
    """Whose right to read a model decides whether a volume shows it."""

    NODE = "node"
    POD = "pod"


class LogFormat(StrEnum):
    """How the agent writes its log."""

    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """The least that the agent's log tells."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def default_store() -> Path:
    """`/var/lib/modelcache` for root, else a folder of the user's cache."""
    if os.geteuid() == 0:
        return Path("/var/lib/modelcache")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "modelcache"


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where models are kept, and how much room they may take."""

    path: Path = field(default_factory=default_store)
    """Root folder of the store."""
    quota_bytes: int = 0
    """Most bytes of blobs to keep; 0 means what the filesystem holds, less `reserve_bytes`."""
    reserve_bytes: int = 256 * MIB
    """Free bytes always left on the filesystem."""
    high_watermark: float = 0.95
    """Share of the quota at which eviction starts."""
    low_watermark: float = 0.85
    """Share of the quota at which eviction stops."""
    chunk_bytes: int = CHUNK_BYTES_DEFAULT
    """Size of a chunk of newly fetched blobs."""


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How bytes are moved."""

    io: IoMode = IoMode.AUTO
    """Write past the page cache (`direct`), through it (`buffered`), or decide by blob (`auto`)."""
    memory_bytes: int = 512 * MIB
    """Most memory for buffers, whatever a model's size."""
    connections_start: int = 8
    """Connections to open before anything was measured; a source that throttles gets fewer."""
    connections_max: int = 64
    """Most connections at once; a smaller one than `connections_start` wins."""
    connections_per_host_max: int = 0
    """Most connections to one origin, of all models fetched at once; 0 means no limit. Each model
    has at least one, and a file that somebody reads before it is here may have a few more."""
    bandwidth_limit_bytes_s: int = 0
    """Most bytes a second to take from origins; 0 means no limit."""
    retries_max: int = 10
    """Failures of one chunk in a row before the pull fails."""
    stall_timeout_s: float = 30.0
    """Silence on a connection after which it is given up."""
    connect_timeout_s: float = 10.0
    """Time to open a connection, TLS included."""
    refused_networks: tuple[str, ...] = ()
    """Networks (`10.0.0.0/8`) that origins may not be in, whatever name leads there; where there
    are any, this machine itself is none either. Mirrors may. Link-local addresses never are."""
    verify_md5: bool = False
    """Check MD5 ETags of blobs over 64 MiB too (0.6 GB/s on one core; smaller ones always are)."""


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Defaults for `s3://` refs; a ref's own options come first, the AWS chain fills the rest."""

    endpoint: str = ""
    """URL of an S3-compatible server."""
    region: str = ""
    """Region, where the credential chain names none."""
    profile: str = ""
    """Profile of ~/.aws/config."""
    style: str = ""
    """`path`, `virtual`, or empty for botocore's choice."""
    requester_pays: bool = False
    """Accept the cost of requests to requester-pays buckets."""
    anonymous: bool = False
    """Do not sign."""
    ca_file: str = ""
    """PEM bundle to trust for the endpoint."""


@dataclass(frozen=True, slots=True)
class GcsSettings:
    """Defaults for `gs://` refs; application-default credentials fill the rest."""

    endpoint: str = ""
    """URL of a server that speaks Google's JSON API."""
    user_project: str = ""
    """Project to bill for requests to requester-pays buckets."""
    anonymous: bool = False
    """Send no credentials (public buckets)."""
    ca_file: str = ""
    """PEM bundle to trust for the endpoint."""


@dataclass(frozen=True, slots=True)
class OciSettings:
    """How `oci://` registries are asked."""

    auth_file: str = ""
    """A `config.json` of Docker's form, as image pull secrets hold it; before `~/.docker`."""
    plain_http: tuple[str, ...] = ()
    """Registries (`host:port`) spoken to without TLS, beside those on loopback."""
    platform: str = ""
    """`os/architecture` to choose from an index; empty for this machine's."""
    ca_file: str = ""
    """PEM bundle to trust for registries."""
    unpacked_bytes_max: int = 4 << 40
    """Most bytes that one layer may unpack to."""


@dataclass(frozen=True, slots=True)
class HfSettings:
    """How the Hugging Face hub is asked; `HF_TOKEN` and `HF_ENDPOINT` fill the rest."""

    endpoint: str = ""
    """URL of a hub or of a mirror of it."""
    token_file: str = ""
    """File that holds an access token; before `HF_TOKEN` and what `hf auth login` stored."""
    ca_file: str = ""
    """PEM bundle to trust for the hub."""


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """Other places that hold the same models, tried in order before the origin itself."""

    rewrite: tuple[str, ...] = ()
    """Lines `PREFIX => REPLACEMENT`, for example `hf:// => s3://mirror/hf/`."""
    only: bool = False
    """Never ask the origin itself where a mirror is named (air-gapped clusters)."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How `http(s)://` origins are asked."""

    ca_file: str = ""
    """PEM bundle to trust."""
    headers: tuple[str, ...] = ()
    """Extra `Name: value` headers, for example a bearer token. Sent to the ref's own host only."""
    hosts: tuple[str, ...] = ()
    """Globs of the hosts, with a port or without, that get them; none named: any that a ref names,
    unless only pods want it, for a pod could name a host of its own to learn what they say."""


@dataclass(frozen=True, slots=True)
class FileSettings:
    """How `file://` models enter the store."""

    link: LocalCopy = LocalCopy.REFLINK
    """`reflink` falls back to a copy; `hardlink` shares the very file: never edit that."""


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """How nodes work together. The limits on origins are of all nodes of a cell together."""

    cell_members_max: int = 64
    """Most nodes that exchange chunks; larger zones are cut into equal cells."""
    announce_s: float = 2.0
    """How often a node that fetches tells the others."""
    agree_s: float = 15.0
    """For how long a node that resolves a ref for all gives the same answer."""
    origin_connections: int = 0
    """Most connections to origins, of all nodes of a cell; 0 means no limit."""
    origin_bytes_s: int = 0
    """Most bytes a second from origins, of all nodes of a cell; 0 means no limit."""
    origin_requests_s: int = 0
    """Most requests a second for weights to origins, of all nodes of a cell; 0 means no limit."""


def agent_socket() -> Path:
    """Where the agent of this user listens unless `agent.socket` says otherwise."""
    return Path(default_socket(os.geteuid(), os.environ.get("XDG_RUNTIME_DIR")))


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The daemon: where it is asked, and how much it does at once."""

    node: str = ""
    """This node's name among its peers; empty for the host's name."""
    socket: Path = field(default_factory=agent_socket)
    """Unix socket of its API; who may open it may do everything."""
    listen: str = "127.0.0.1:9870"
    """`host:port` of its API and metrics over TCP; empty for none."""
    tcp_token_file: str = ""
    """File with the token that changes over TCP need; without one TCP is for reading only."""
    pulls_max: int = 4
    """Most models fetched at once."""
    refresh_s: float = 0.0
    """How often the refs of warm models are resolved anew; 0 means only when asked."""
    shutdown_s: float = 30.0
    """Most time to finish what is being sent to others before the agent ends."""
    priority_limits: tuple[str, ...] = ()
    """Lines `PRIORITY: SIZE`: pulls up to that priority take at most so many bytes a second."""
    volume_roots: tuple[str, ...] = ("/var/lib/kubelet",)
    """Volumes may be published below these folders only; none: there are no volumes."""
    log_format: LogFormat = LogFormat.JSON
    """`json` for machines, `console` for people."""
    log_level: LogLevel = LogLevel.INFO
    """`debug`, `info`, `warning` or `error`."""

    def node_id(self) -> NodeId:
        """What this node is called among others. Raises InvalidConfig."""
        name = self.node or os.uname().nodename
        if not is_node_id(name):
            raise InvalidConfig(
                f"agent.node: {name[:80]!r} is not a node's name: letters, digits, dots and dashes"
            )
        return NodeId(name)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Streaming mounts: models shown before all of them is here."""

    read_timeout_s: float = 120.0
    """Longest time that a read waits for bytes; then it fails with ETIMEDOUT."""
    ahead_bytes: int = 256 * MIB
    """Most bytes fetched ahead of a reader that reads on; 0 for none."""
    passthrough: bool = True
    """Let the kernel read complete files without us, where it can (Linux 6.9)."""
    cover: bool = True
    """Where it cannot, mount the snapshot over the stream once all of the model is here."""
    hold_s: float = 60.0
    """How long mounts of an agent that died wait for the next; 0: they die with it."""
    holder: str = ""
    """Socket of the process that keeps them meanwhile; empty for `holder.sock` beside the agent's.
    The agent starts one where none listens."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """The peer plane: where nodes give each other chunks, who they are, and how they prove it."""

    listen: str = "127.0.0.1:9871"
    """`host:port` where peers ask; `0.0.0.0` or `[::]` for all addresses, port 0 for any."""
    advertise: str = ""
    """`host` or `host:port` that others reach this node by; empty for that of `listen`."""
    zone: str = ""
    """Where this node stands; only nodes of one zone exchange chunks."""
    members: tuple[str, ...] = ()
    """All nodes, as `host:port` or `host:port@zone`; without a zone they are in this node's."""
    dns: str = ""
    """`name:port` whose addresses are all nodes, for example of a headless Service."""
    cert_file: str = ""
    """PEM certificate of this node; with `key_file` and `ca_file` peers speak mutual TLS."""
    key_file: str = ""
    """PEM key of the certificate."""
    ca_file: str = ""
    """PEM bundle of the authorities that sign peers' certificates."""
    server_name: str = ""
    """Name that every peer's certificate holds; empty for the address it is reached by."""
    allowed_names: tuple[str, ...] = ()
    """Names of which a peer that asks must have one in its certificate; empty for any."""
    token_file: str = ""
    """File with the cluster's token, which signs requests and answers."""
    token_grace_s: float = 600.0
    """How long the token before the present one is still good."""
    insecure: bool = False
    """Let anybody who reaches the peer plane read what is in the store."""
    connections_max: int = 512
    """Most connections of peers at once."""
    connections_per_peer_max: int = 32
    """Most connections of one peer at once."""
    bandwidth_limit_bytes_s: int = 0
    """Most bytes a second to give to peers; 0 means no limit."""
    wait_s: float = 10.0
    """Longest time to let a peer wait for a chunk that is on its way."""

    @property
    def secured(self) -> bool:
        """Whether peers have to prove who they are."""
        return bool(self.token_file or self.cert_file or self.key_file or self.ca_file)

    def advertised(self, port: int) -> tuple[str, int]:
        """Host and port that others reach this node by.

        port: where the peer plane listens. Raises InvalidConfig where nobody has said a host.
        """
        host, named_port = parse_address(self.advertise or self.listen)
        if host in EVERYWHERE:
            raise InvalidConfig(
                f"peers.listen is {self.listen}: name the address that others reach this node by "
                "as peers.advertise"
            )
        return host, (named_port if self.advertise else None) or port


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may have volumes of models that are on this node."""

    mode: AccessMode = AccessMode.NODE
    """`node`: every volume may show what the node can read; `pod`: what its own secret can read."""
    shared: tuple[str, ...] = ()
    """Globs of refs that need no secret in the mode `pod`, such as `hf://meta-llama/*`."""
    keep_s: float = 600.0
    """How long it is believed that a secret may read a model."""
    local: bool = False
    """Whether pods may name files and addresses of the node itself, where others' secrets are."""
    hosts: tuple[str, ...] = ()
    """Globs of `host` or `host:port` that pods may name although they are the cluster's or the
    node's own, such as `minio.models.svc*`."""
    services: tuple[str, ...] = ()
    """Networks of the cluster's Services, beside those that the cluster tells (from 1.33 on)."""
    aws_audience: str = "sts.amazonaws.com"
    """For whom the tokens of pods' service accounts are, that AWS (or `sts_endpoint`) takes."""
    sts_endpoint: str = ""
    """STS of another than AWS, such as MinIO's address; empty for AWS's own of the region."""
    google_provider: str = ""
    """Workload identity provider that takes pods' tokens, `//iam.googleapis.com/projects/…`, or
    GKE's, `identitynamespace:PROJECT.svc.id.goog:https://container.googleapis.com/v1/…`."""
    google_sts: str = "https://sts.googleapis.com/v1/token"
    """Where Google exchanges tokens."""
    google_iam: str = "https://iamcredentials.googleapis.com"
    """Where Google gives accounts the tokens of service accounts that they may act as."""
    quotas: tuple[str, ...] = ()
    """Lines `NAMESPACE: SIZE`: most bytes of models that its pods have here; `*` for others."""


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """The cluster this node belongs to: pods and objects that say what is to be here."""

    enabled: bool = False
    """Whether to watch it; a node outside of clusters has none."""
    kubeconfig: str = ""
    """File that says how to reach it; empty for the pod's own account, or `KUBECONFIG`."""
    node: str = ""
    """Name of the Kubernetes node; empty for `agent.node`."""
    peers_service: str = ""
    """`namespace/name` of a headless Service whose endpoints are the peers; empty for none."""
    report_s: float = 2.0
    """Least time between two updates of this node's `NodeModels`."""


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """Models in memory, so that the next start of one reads no disk."""

    share: float = 0.8
    """Most of the available memory that `warm --memory` may fill with one model's pages."""
    folder: str = ""
    """A folder of a tmpfs that `warm --locked` copies models to; empty: nobody does."""
    quota_bytes: int = 0
    """What such copies may take together, least recently used ones dropped first; 0: the tmpfs."""
    threads: int = 4
    """Reads at once; a fifth gained nothing on NVMe."""


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    """What is believed of speeds until they were measured; 0 for nothing."""

    origin_bytes_s: int = 0
    """Bytes a second that this node gets from an origin."""
    peer_bytes_s: int = 0
    """Bytes a second that this node gets from others."""
    load_bytes_s: int = 0
    """Bytes a second that go from the node's disk into the memory where a model runs."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All groups."""

    store: StoreSettings = field(default_factory=StoreSettings)
    transfer: TransferSettings = field(default_factory=TransferSettings)
    s3: S3Settings = field(default_factory=S3Settings)
    gcs: GcsSettings = field(default_factory=GcsSettings)
    oci: OciSettings = field(default_factory=OciSettings)
    hf: HfSettings = field(default_factory=HfSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    file: FileSettings = field(default_factory=FileSettings)
    mirrors: MirrorSettings = field(default_factory=MirrorSettings)
    swarm: SwarmSettings = field(default_factory=SwarmSettings)
    peers: PeerSettings = field(default_factory=PeerSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    forecast: ForecastSettings = field(default_factory=ForecastSettings)
    max_age_s: float = 0.0
    """How long a resolved ref is believed without asking its origin again."""

    def with_store(self, path: Path) -> Settings:
        """The same settings over another store."""
        return replace(self, store=replace(self.store, path=path))
