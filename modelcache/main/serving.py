"""The agent's life as a process: begin, answer, and on a signal end in order.

The first SIGTERM or SIGINT has it finish: nothing new is taken, pulls stop and keep their chunks,
what is being sent to peers is sent. The second one ends it at once, which loses no more than a
crash would: the chunks in flight.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Final

from modelcache.faces.http.serving import serving
from modelcache.faces.logs import Log
from modelcache.main.notify import READY, STOPPING, WATCHDOG, Notifier
from modelcache.main.wiring import Assembled

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
GRACE_S: Final = 2.0  # beyond what the settings allow: for closing what has been finished


def serve(parts: Assembled, log: Log, notifier: Notifier) -> None:
    """Run until a signal. Raises ModelcacheError when it cannot begin."""
    asyncio.run(_serve(parts, log, notifier))


async def _serve(parts: Assembled, log: Log, notifier: Notifier) -> None:
    daemon = parts.daemon
    ending = asyncio.Event()
    on_signals(ending.set)
    try:
        async with serving(parts.faces, parts.closing):
            # Probes are answered from here on; a large store takes a moment to open.
            await asyncio.to_thread(daemon.start)
            if parts.cluster is not None:
                parts.cluster.start()
            log.info(
                "agent_ready",
                node=daemon.node.name,
                socket=str(daemon.settings.agent.socket),
                listen=_address(parts.tcp),
                store=str(daemon.settings.store.path),
            )
            notifier.tell(READY, f"STATUS=ready, {len(daemon.node.statuses())} models wanted")
            watchdog = asyncio.create_task(_watchdog(notifier, lambda: daemon.node.alive))
            try:
                await ending.wait()
            finally:
                watchdog.cancel()
            notifier.tell(STOPPING)
            log.info("agent_stopping")
            daemon.leave()
            if parts.cluster is not None:  # which learns that this node drains
                await asyncio.to_thread(parts.cluster.stop)
            whole = await asyncio.to_thread(daemon.drain)
            log.info("agent_drained", complete=whole)
    finally:
        await asyncio.to_thread(daemon.close)
    log.info("agent_stopped")


def on_signals(end: Callable[[], None]) -> None:
    """The first signal ends in order; the second does what it does to any other process."""
    loop = asyncio.get_running_loop()

    def first(_: signal.Signals) -> None:
        for each in SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        end()

    for number in SIGNALS:
        loop.add_signal_handler(number, first, number)


async def _watchdog(notifier: Notifier, alive: Callable[[], bool]) -> None:
    """Show that the loop turns. A pull that hangs is not the process's death."""
    while notifier.watchdog_s and alive():
        notifier.tell(WATCHDOG)
        await asyncio.sleep(notifier.watchdog_s / 2)


def _address(tcp: tuple[str, int] | None) -> str:
    if tcp is None:
        return ""
    host, port = tcp
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
