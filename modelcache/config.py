"""Settings: frozen, validated, in groups; from defaults, a TOML file, the environment, then flags.

    [store]                     MODELCACHE_STORE_PATH
    path = "/var/lib/modelcache"
    [transfer]                  MODELCACHE_TRANSFER_IO
    io = "direct"
    [s3]                        MODELCACHE_S3_ENDPOINT
    endpoint = "http://minio:9000"

Each group is a dataclass; its field names are the TOML keys and, upper-cased behind
`MODELCACHE_<GROUP>_`, the environment names. The file is the first of `$MODELCACHE_CONFIG`,
`$XDG_CONFIG_HOME/modelcache/config.toml` (`~/.config`), `/etc/modelcache/config.toml` that exists.
Sizes accept `512MiB`, `1.5 GB`, `2T`; durations `90s`, `5m`, `1h`.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final

from modelcache.domain.addresses import EVERYWHERE, is_zone, parse_address, parse_member
from modelcache.domain.listening import default_socket, parse_listen
from modelcache.domain.mirrors import parse_rewrites
from modelcache.domain.ranges import CHUNK_BYTES_DEFAULT, MIB
from modelcache.domain.wanted import PRIORITY_MAX
from modelcache.errors import InvalidConfig, UsageError

ENVIRONMENT_PREFIX: Final = "MODELCACHE_"
BLOCK_BYTES: Final = 2 * MIB  # one read, one hash, one write; divides every chunk size

Flags = Mapping[str, tuple[str, str | int | bool | None]]
"""Options of a command line: what a user writes, the `group.field` it overrides, and the value."""


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
    bandwidth_limit_bytes_s: int = 0
    """Most bytes a second to take from origins; 0 means no limit."""
    retries_max: int = 10
    """Failures of one chunk in a row before the pull fails."""
    stall_timeout_s: float = 30.0
    """Silence on a connection after which it is given up."""
    connect_timeout_s: float = 10.0
    """Time to open a connection, TLS included."""
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
    log_format: LogFormat = LogFormat.JSON
    """`json` for machines, `console` for people."""
    log_level: LogLevel = LogLevel.INFO
    """`debug`, `info`, `warning` or `error`."""


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
    max_age_s: float = 0.0
    """How long a resolved ref is believed without asking its origin again."""

    def with_store(self, path: Path) -> Settings:
        """The same settings over another store."""
        return replace(self, store=replace(self.store, path=path))


def load_settings(
    path: Path | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Read file and environment over the defaults.

    path: the file to read; it must exist when given. Raises InvalidConfig naming the setting, its
    place and what it would accept.
    """
    environment = os.environ if environment is None else environment
    chosen = path or _find_file(environment)
    table = _read_toml(chosen) if chosen else {}
    settings = _apply_table(Settings(), table, where=str(chosen))
    return _validated(_apply_environment(settings, environment))


def find_problems(
    path: Path | None, environment: Mapping[str, str], flags: Flags
) -> list[InvalidConfig]:
    """Everything that is wrong with a configuration, where `load_settings` tells the first only.

    Each setting is looked at alone, then all of them together. Flags are looked at too.
    """
    try:
        chosen = path or _find_file(environment)
        table = _read_toml(chosen) if chosen else {}
    except InvalidConfig as error:
        return [error]
    steps: list[Callable[[Settings], Settings]] = []
    for group, values in table.items():
        parts = (
            [{name: value} for name, value in values.items()]
            if isinstance(values, dict)
            else [values]
        )
        steps += [partial(_apply_table, table={group: part}, where=str(chosen)) for part in parts]
    steps += [
        partial(_apply_environment, environment={name: environment[name]}) for name in environment
    ]
    steps += [partial(_flagged, flag=flag, given=given) for flag, given in flags.items()]
    settings = Settings()
    problems: dict[str, InvalidConfig] = {}
    for step in steps:
        try:
            settings = step(settings)
        except InvalidConfig as error:
            problems.setdefault(error.message, error)
    for message in _broken_rules(settings):
        problems.setdefault(message, InvalidConfig(message))
    return list(problems.values())


def _flagged(settings: Settings, flag: str, given: tuple[str, Any]) -> Settings:
    """With one flag, which is at fault only for what it would break alone."""
    name, value = given
    override(Settings(), {flag: given})
    group, _, inner = name.partition(".")
    return (
        settings if value is None else _apply_table(settings, {group: {inner: value}}, where=flag)
    )


def override(settings: Settings, flags: Flags) -> Settings:
    """Apply flags over settings; a value of None is not given. Raises InvalidConfig."""
    for flag, (name, value) in flags.items():
        if value is not None:
            group, _, inner = name.partition(".")
            try:
                settings = _apply_table(settings, {group: {inner: value}}, where=flag)
                _validated(settings)
            except InvalidConfig as error:  # a user of flags need not know the settings' names
                message = error.message.removeprefix(f"{flag}: ").replace(name, flag)
                raise InvalidConfig(message) from error
    return settings


def parse_size(text: str) -> int:
    """Bytes from `512MiB`, `1.5GB`, `2T` or a plain number. Raises InvalidConfig."""
    match = re.fullmatch(r"\s*([0-9]+)(?:\.([0-9]+))?\s*(?:([kKMGTP])(i?))?[bB]?\s*", text)
    if not match:
        raise InvalidConfig(f"{text!r} is not a size; write for example 512MiB or 1.5GB")
    whole, fraction, prefix, binary = match.groups(default="")
    unit: int = (1024 if binary else 1000) ** " KMGTP".index(prefix.upper() or " ")
    scale: int = 10 ** len(fraction)
    return int(whole) * unit + int(fraction or 0) * unit // scale


def parse_duration(text: str) -> float:
    """Seconds from `90s`, `5m`, `1.5h`, `2d` or a plain number. Raises InvalidConfig."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?\s*", text)
    if not match:
        raise InvalidConfig(f"{text!r} is not a duration; write for example 90s or 5m")
    number, unit = match.groups()
    return float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit or "s"]


def parse_priority_limits(lines: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """`30: 200MB` as (highest priority, bytes a second), by priority. Raises InvalidConfig."""
    found: dict[int, int] = {}
    for line in lines:
        match = re.fullmatch(r"\s*([0-9]{1,3})\s*:\s*(\S.*)", line)
        if match is None or int(match[1]) > PRIORITY_MAX:
            raise InvalidConfig(
                f"{line[:80]!r} is not PRIORITY: SIZE with a priority up to {PRIORITY_MAX}; "
                "write for example 30: 200MB"
            )
        limit = parse_size(match[2])
        if not limit:
            raise InvalidConfig(f"{line[:80]!r} would let nothing through; leave the line out")
        found[int(match[1])] = limit
    return tuple(sorted(found.items()))


def _find_file(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    if named:
        return Path(named)
    home = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", "/")) / ".config"
    candidates = [Path(home) / "modelcache/config.toml", Path("/etc/modelcache/config.toml")]
    # Not Path.is_file, which raises where a folder on the way may not be searched.
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"cannot read configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}") from error


def _apply_table(settings: Settings, table: Mapping[str, Any], *, where: str) -> Settings:
    groups = {item.name for item in fields(Settings)}
    changes: dict[str, Any] = {}
    for name, value in table.items():
        if name not in groups:
            raise InvalidConfig(f"{where}: unknown setting {name!r}; known are {sorted(groups)}")
        current = getattr(settings, name)
        if name == "max_age_s":
            changes[name] = _convert(value, current, f"{where}: {name}")
        elif not isinstance(value, dict):
            raise InvalidConfig(f"{where}: {name!r} must be a table, [{name}]")
        else:
            changes[name] = _apply_group(current, value, f"{where}: {name}")
    return replace(settings, **changes)


def _apply_group(group: Any, table: Mapping[str, Any], where: str) -> Any:  # noqa: ANN401
    known = {item.name for item in fields(group)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise InvalidConfig(f"{where}: unknown setting {unknown[0]!r}; known are {sorted(known)}")
    return replace(
        group,
        **{
            name: _convert(value, getattr(group, name), f"{where}.{name}")
            for name, value in table.items()
        },
    )


def _apply_environment(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """Unknown MODELCACHE_ names are left alone: other programs may own them."""
    table: dict[str, Any] = {}
    for item in fields(Settings):
        prefix = f"{ENVIRONMENT_PREFIX}{item.name.upper()}"
        if item.name == "max_age_s":
            if environment.get(prefix):
                table[item.name] = environment[prefix]
            continue
        for inner in fields(getattr(settings, item.name)):
            value = environment.get(f"{prefix}_{inner.name.upper()}")
            if value:
                table.setdefault(item.name, {})[inner.name] = value
    short = environment.get(f"{ENVIRONMENT_PREFIX}STORE")
    if short:
        table.setdefault("store", {}).setdefault("path", short)
    return _apply_table(settings, table, where="environment")


def _convert(value: Any, current: Any, where: str) -> Any:  # noqa: ANN401, PLR0911
    """Bring `value` (TOML or text) to the type of `current`."""
    try:
        match current:
            case bool():
                return value if isinstance(value, bool) else _parse_bool(str(value))
            case StrEnum():
                return _choice(value, type(current))
            case int():
                return value if type(value) is int else parse_size(str(value))
            case float():
                return float(value) if type(value) in {int, float} else _parse_number(str(value))
            case Path():
                return _path(value)
            case tuple():
                return tuple(_text(item) for item in _lines(value))
            case _:
                return _text(value)
    except (InvalidConfig, ValueError, RuntimeError) as error:  # RuntimeError: `~` of nobody
        raise InvalidConfig(f"{where}: {error}") from error


def _choice(value: object, known: type[StrEnum]) -> StrEnum:
    if value not in list(known):
        raise InvalidConfig(f"{value!r} is none of {', '.join(known)}")
    return known(str(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidConfig(f"expected text, found {type(value).__name__}")
    if "\x00" in value:
        raise InvalidConfig("text has a NUL character in it")
    return value


def _lines(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else list(_text(value).splitlines())


def _path(value: object) -> Path:
    text = _text(value)
    if not text:
        raise InvalidConfig("expected a path, found nothing")
    return Path(text).expanduser()


def _parse_bool(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise InvalidConfig(f"{text!r} is not a yes or no; write true or false")


def _parse_number(text: str) -> float:
    if re.fullmatch(r"\s*[0-9.]+(e-?[0-9]+)?\s*", text):  # not `nan` and `inf`
        return float(text)
    return parse_duration(text)


def _validated(settings: Settings) -> Settings:
    for message in _broken_rules(settings):
        raise InvalidConfig(message)
    return settings


def _broken_rules(settings: Settings) -> Iterator[str]:
    """What is wrong with values that are well-formed, each for itself."""
    store, transfer = settings.store, settings.transfer
    checks = [
        (
            0 < store.low_watermark <= store.high_watermark <= 1,
            "store: watermarks must satisfy 0 < low_watermark <= high_watermark <= 1",
        ),
        (
            store.chunk_bytes >= BLOCK_BYTES and store.chunk_bytes % BLOCK_BYTES == 0,
            f"store.chunk_bytes must be a multiple of {BLOCK_BYTES}",
        ),
        (
            transfer.memory_bytes >= 8 * BLOCK_BYTES,
            f"transfer.memory_bytes must be at least {8 * BLOCK_BYTES}",
        ),
        (transfer.connections_start >= 1, "transfer.connections_start must be at least 1"),
        (transfer.connections_max >= 1, "transfer.connections_max must be at least 1"),
        *(
            (getattr(group, item.name) >= 0, f"{name}.{item.name} must not be negative")
            for name, group in (("store", store), ("transfer", transfer))
            for item in fields(group)
            if isinstance(getattr(group, item.name), int | float)
        ),
        (settings.max_age_s >= 0, "max_age_s must not be negative"),
        (
            transfer.connect_timeout_s > 0,
            "transfer.connect_timeout_s must be positive",
        ),
        (
            all(map(math.isfinite, (transfer.connect_timeout_s, transfer.stall_timeout_s))),
            "transfer: timeouts must be finite",
        ),
        (transfer.stall_timeout_s > 0, "transfer.stall_timeout_s must be positive"),
        (settings.s3.style in {"", "path", "virtual"}, "s3.style must be path or virtual"),
    ]
    yield from (message for holds, message in checks if not holds)
    try:
        parse_rewrites(settings.mirrors.rewrite)
    except UsageError as error:
        yield error.message
    yield from _broken_agent_rules(settings.agent)
    yield from _broken_peer_rules(settings.peers)


def _broken_agent_rules(agent: AgentSettings) -> Iterator[str]:
    for name, least in (("pulls_max", 1), ("refresh_s", 0), ("shutdown_s", 0)):
        if not least <= getattr(agent, name) < math.inf:
            yield f"agent.{name} must be at least {least}"
    try:
        if agent.listen:
            parse_listen(agent.listen)
    except UsageError as error:
        yield f"agent.listen: {error.message}"
    try:
        parse_priority_limits(agent.priority_limits)
    except InvalidConfig as error:
        yield f"agent.priority_limits: {error.message}"


def _broken_peer_rules(peers: PeerSettings) -> Iterator[str]:
    for name in ("connections_max", "connections_per_peer_max"):
        if getattr(peers, name) < 1:
            yield f"peers.{name} must be at least 1"
    for name in ("token_grace_s", "bandwidth_limit_bytes_s", "wait_s"):
        if not 0 <= getattr(peers, name) < math.inf:
            yield f"peers.{name} must not be negative"
    files = (peers.cert_file, peers.key_file, peers.ca_file)
    if any(files) and not all(files):
        yield "peers: cert_file, key_file and ca_file belong together; set all three or none"
    if not peers.listen:
        yield "peers.listen must be host:port"
    if peers.members and peers.dns:
        yield "peers: set either members or dns"
    yield from _broken_peer_addresses(peers)


def _broken_peer_addresses(peers: PeerSettings) -> Iterator[str]:
    named = (("listen", peers.listen), ("advertise", peers.advertise), ("dns", peers.dns))
    for name, text in named:
        try:
            if text and parse_address(text)[1] is None and name != "advertise":
                yield f"peers.{name}: {text[:80]!r} has no port; write for example {text[:80]}:9871"
        except InvalidConfig as error:
            yield f"peers.{name}: {error.message}"
    for line in peers.members:
        try:
            parse_member(line, zone=peers.zone)
        except InvalidConfig as error:
            yield f"peers.members: {error.message}"
    if not is_zone(peers.zone):
        yield f"peers.zone: {peers.zone[:80]!r} is not a zone's name: letters, digits, . _ / -"
