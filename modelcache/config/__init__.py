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

from modelcache.config.groups import (
    BLOCK_BYTES,
    AccessMode,
    AccessSettings,
    AgentSettings,
    FileSettings,
    ForecastSettings,
    GcsSettings,
    HfSettings,
    HttpSettings,
    IoMode,
    KubernetesSettings,
    LocalCopy,
    LogFormat,
    LogLevel,
    MemorySettings,
    MirrorSettings,
    OciSettings,
    PeerSettings,
    S3Settings,
    Settings,
    StoreSettings,
    StreamSettings,
    SwarmSettings,
    TransferSettings,
    agent_socket,
    default_store,
)
from modelcache.config.loading import (
    ENVIRONMENT_PREFIX,
    Flags,
    find_problems,
    load_settings,
    override,
)
from modelcache.config.values import (
    OTHERS,
    parse_duration,
    parse_priority_limits,
    parse_quotas,
    parse_size,
)

__all__ = [
    "BLOCK_BYTES",
    "ENVIRONMENT_PREFIX",
    "OTHERS",
    "AccessMode",
    "AccessSettings",
    "AgentSettings",
    "FileSettings",
    "Flags",
    "ForecastSettings",
    "GcsSettings",
    "HfSettings",
    "HttpSettings",
    "IoMode",
    "KubernetesSettings",
    "LocalCopy",
    "LogFormat",
    "LogLevel",
    "MemorySettings",
    "MirrorSettings",
    "OciSettings",
    "PeerSettings",
    "S3Settings",
    "Settings",
    "StoreSettings",
    "StreamSettings",
    "SwarmSettings",
    "TransferSettings",
    "agent_socket",
    "default_store",
    "find_problems",
    "load_settings",
    "override",
    "parse_duration",
    "parse_priority_limits",
    "parse_quotas",
    "parse_size",
]
