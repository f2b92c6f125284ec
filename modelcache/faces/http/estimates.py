"""The route that says when a model would be ready: here, on the best node, on a new one."""

from __future__ import annotations

from math import inf
from typing import Annotated

from fastapi import APIRouter, Query

from modelcache.agent.daemon import Daemon
from modelcache.agent.foresight import Outlook
from modelcache.domain.refs import REF_BYTES_MAX, parse_ref
from modelcache.domain.volumes import MountMode
from modelcache.domain.wanted import PRIORITY_MAX
from modelcache.errors import NotFound
from modelcache.faces.http.schemas import (
    GLOBS_MAX,
    Basis,
    Estimate,
    Estimates,
    Glob,
    PartsInfo,
    ScoreInfo,
    Which,
)
from modelcache.forecast.calibration import LEVELS


def estimate_routes(daemon: Daemon) -> APIRouter:
    """`/estimate`."""
    router = APIRouter(tags=["models"])
    foresight = daemon.node.foresight

    @router.get("/estimate")
    def estimate(  # noqa: PLR0917 - one parameter for each that is asked for
        ref: Annotated[str, Query(min_length=1, max_length=REF_BYTES_MAX)],
        node: Annotated[
            str | None,
            Query(max_length=253, description="`this`, `best`, `new`, or a node's name."),
        ] = None,
        priority: Annotated[
            int | None,
            Query(ge=0, le=PRIORITY_MAX, description="Of who would want it; 90 without."),
        ] = None,
        mode: Annotated[
            MountMode,
            Query(description="`stream`: it can be mounted at once, and is loaded while it comes."),
        ] = MountMode.FULL,
        include: Annotated[list[Glob] | None, Query(max_length=GLOBS_MAX)] = None,
        exclude: Annotated[list[Glob] | None, Query(max_length=GLOBS_MAX)] = None,
    ) -> Estimates:
        """When a model's weights would be ready if a replica of it started now.

        On this node, on the best of the cell, and on a new node that has nothing. Nothing is
        fetched or asked of an origin for it, so the model must have been resolved here before.
        Times are `null`, and the basis `unknown`, where nothing was measured or declared.
        """
        asked = parse_ref(ref).filtered(include or (), exclude or ())
        found = foresight.everywhere(asked, priority=priority, stream=mode is MountMode.STREAM)
        standing = foresight.knowledge.standing()
        return Estimates(
            ref=asked.redacted(),
            model_id=found[0].model_id,
            size_bytes=found[0].needs.size_bytes,
            estimates=[_told(which, outlook) for which, outlook in _chosen(found, node)],
            score=ScoreInfo(
                starts=standing.starts,
                abandoned=standing.abandoned,
                median_error=standing.error,
                p50_coverage=standing.coverage[LEVELS[0]],
                p90_coverage=standing.coverage[LEVELS[1]],
                confident=standing.confident,
            ),
        )

    return router


def _chosen(found: list[Outlook], node: str | None) -> list[tuple[Which, Outlook]]:
    """Which of them are asked for, and why. found: this node, others, a new one."""
    this, *others, new = found
    known = [this, *others]
    best = min(known, key=lambda each: each.prediction.p90_s if each.prediction else inf)
    usual = {Which.THIS: this, Which.BEST: best, Which.NEW: new}
    if node is None:
        return list(usual.items())
    for which, outlook in usual.items():
        if node == which.value:
            return [(which, outlook)]
    for outlook in known:
        if outlook.node == node:
            return [(Which.NAMED, outlook)]
    raise NotFound(f"no node {node!r} answers in this agent's cell; /v1/peers lists those that do")


def _told(which: Which, outlook: Outlook) -> Estimate:
    needs, told = outlook.needs, outlook.prediction
    basis = Basis.UNKNOWN
    if told is not None:
        basis = Basis.MEASURED if told.measured else Basis.DECLARED
    parts = told.parts if told is not None else None
    return Estimate(
        which=which,
        node=outlook.node,
        tier=needs.tier,
        missing_bytes=needs.missing_bytes,
        ahead_bytes=needs.ahead_bytes,
        holders=needs.holders,
        fetchers=needs.fetchers,
        p50_s=_rounded(told.p50_s if told else None),
        p90_s=_rounded(told.p90_s if told else None),
        loaded_p50_s=_rounded(told.loaded_p50_s if told else None),
        loaded_p90_s=_rounded(told.loaded_p90_s if told else None),
        basis=basis,
        confident=told is not None and told.confident,
        parts=PartsInfo(
            queue_s=round(parts.queue_s, 3),
            resolve_s=round(parts.resolve_s, 3),
            fetch_s=round(parts.fetch_s, 3),
            finish_s=round(parts.finish_s, 3),
            mount_s=round(parts.mount_s, 3),
            load_s=_rounded(parts.load_s),
        )
        if parts is not None
        else None,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
