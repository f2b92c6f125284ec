"""What must hold of values that are well-formed, each for itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Final

from modelcache.config.groups import (
    BLOCK_BYTES,
    AgentSettings,
    PeerSettings,
    Settings,
    StreamSettings,
)
from modelcache.config.values import parse_priority_limits, parse_quotas
from modelcache.domain.addresses import is_zone, parse_address, parse_member
from modelcache.domain.listening import parse_listen
from modelcache.domain.mirrors import parse_rewrites
from modelcache.domain.reach import parse_networks
from modelcache.errors import InvalidConfig, UsageError

MEMORY_THREADS_MAX: Final = 64


def validated(settings: Settings) -> Settings:
    """The same settings. Raises InvalidConfig for the first rule they break."""
    for message in broken_rules(settings):
        raise InvalidConfig(message)
    return settings


def broken_rules(settings: Settings) -> Iterator[str]:
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
            for name, group in (
                ("store", store),
                ("transfer", transfer),
                ("forecast", settings.forecast),
                ("memory", settings.memory),
            )
            for item in fields(group)
            if isinstance(getattr(group, item.name), int | float)
        ),
        (0 < settings.memory.share <= 1, "memory.share must be above 0 and at most 1"),
        (
            1 <= settings.memory.threads <= MEMORY_THREADS_MAX,
            f"memory.threads must be 1 to {MEMORY_THREADS_MAX}",
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
    try:
        parse_quotas(settings.access.quotas)
    except InvalidConfig as error:
        yield f"access.quotas: {error.message}"
    yield from _broken_networks(settings)
    if not 0 <= settings.access.keep_s < math.inf:
        yield "access.keep_s must not be negative"
    if not 0 < settings.kubernetes.report_s < math.inf:
        yield "kubernetes.report_s must be positive"
    yield from _broken_stream_rules(settings.stream)
    service = settings.kubernetes.peers_service
    if service and len([part for part in service.split("/") if part]) != 2:  # noqa: PLR2004
        yield f"kubernetes.peers_service: {service[:80]!r} is not namespace/name"
    yield from _broken_peer_rules(settings.peers)
    shares = settings.peers.members or settings.peers.dns or service
    if shares and settings.peers.wait_s >= transfer.stall_timeout_s:
        yield (
            "peers.wait_s must be less than transfer.stall_timeout_s: who waits for a chunk would "
            "give up before there is an answer"
        )


def _broken_stream_rules(stream: StreamSettings) -> Iterator[str]:
    if not 0 < stream.read_timeout_s < math.inf:
        yield "stream.read_timeout_s must be positive"
    if not 0 <= stream.hold_s < math.inf:
        yield "stream.hold_s must not be negative"
    if stream.ahead_bytes < 0:
        yield "stream.ahead_bytes must not be negative"


def _broken_networks(settings: Settings) -> Iterator[str]:
    for name, networks in (
        ("transfer.refused_networks", settings.transfer.refused_networks),
        ("access.services", settings.access.services),
    ):
        try:
            parse_networks(networks)
        except UsageError as error:
            yield f"{name}: {error.message}"


def _broken_agent_rules(agent: AgentSettings) -> Iterator[str]:
    for name, least in (("pulls_max", 1), ("refresh_s", 0), ("shutdown_s", 0)):
        if not least <= getattr(agent, name) < math.inf:
            yield f"agent.{name} must be at least {least}"
    for root in agent.volume_roots:
        if not root.startswith("/") or ".." in root.split("/"):
            yield f"agent.volume_roots: {root!r} is not an absolute path"
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
