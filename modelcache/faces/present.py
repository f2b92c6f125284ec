"""Results as people read them and as programs do: one function of each kind for every command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from modelcache.agent import Snapshot, StoredFile, StoredModel, VerifyResult
from modelcache.domain.differences import Change, Difference
from modelcache.domain.manifests import SHORT_ID
from modelcache.faces import units
from modelcache.store.room import GarbageReport, Usage
from modelcache.transfer.report import Report

if TYPE_CHECKING:
    from modelcache.agent.memory import MemoryUse
    from modelcache.agent.pushes import PushReport

_UNVERIFIED: Final = "unverified by origin"


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces; the last one runs free."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """`pull --json`."""
    return {
        "path": str(snapshot.path),
        "model_id": snapshot.model_id,
        "ref": snapshot.ref,
        "fetched_bytes": snapshot.fetched_bytes,
        "from_cache": snapshot.from_cache,
        "report": snapshot.report.to_json() if snapshot.report else None,
    }


def snapshot_text(snapshot: Snapshot) -> str:
    """The summary at the end of a pull."""
    short = snapshot.model_id[:SHORT_ID]
    report = snapshot.report
    if snapshot.from_cache:
        return f"warm: {snapshot.ref} is model {short}; its origin was not asked"
    if report is None or not snapshot.fetched_bytes:
        asked = f", its origin was asked in {units.duration(report.resolving_s)}" if report else ""
        return f"warm: {snapshot.ref} is model {short}; nothing to fetch{asked}"
    seconds = report.transfer_s or report.wall_s
    lines = [
        (
            f"pulled {snapshot.ref} as model {short}: "
            f"{units.count(report.files, 'file')}, {units.size(report.total_bytes)}"
        ),
        (
            f"  fetched {units.size(report.fetched_bytes)} in {units.duration(report.wall_s)} "
            f"({units.rate(report.fetched_bytes / max(seconds, 1e-9))}, "
            f"{report.connections_peak} connections at most)"
        ),
    ]
    if report.present_bytes:
        lines.append(f"  {units.size(report.present_bytes)} were here already")
    if report.verified:
        lines.append(f"  checks: {verified_text(report.verified)}")
    lines += [f"  {note}" for note in report.notes]
    return "\n".join(lines)


def push_text(report: PushReport) -> str:
    """The summary at the end of a push."""
    size = sum(layer.size_bytes for layer in report.layers)
    rate = units.rate(report.sent_bytes / max(report.seconds, 1e-9))
    lines = [
        f"pushed {units.count(len(report.layers), 'file')}, {units.size(size)}",
        f"  sent {units.size(report.sent_bytes)} in {units.duration(report.seconds)} ({rate})",
    ]
    if report.present_bytes:
        lines.append(f"  {units.size(report.present_bytes)} were there already")
    if report.mounted_bytes:
        mounted = units.size(report.mounted_bytes)
        lines.append(f"  {mounted} were taken from other repositories there")
    if report.previous == report.digest:
        lines.append("  the tag showed the same before")
    elif report.previous:
        lines.append(f"  the tag showed {report.previous} before")
    return "\n".join(lines)


def verified_text(verified: Mapping[str, int]) -> str:
    """`crc64nvme 4.0 GB, unverified by origin 12 kB`."""
    ordered = sorted(verified.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{_UNVERIFIED if name == 'none' else name} {units.size(amount)}"
        for name, amount in ordered
    )


def _ago(at_s: float, now_s: float) -> str:
    """at_s: 0 for never, as of a model's folder that a crash has left without anything in it."""
    return f"{units.duration(max(0.0, now_s - at_s))} ago" if at_s else "-"


def models_text(models: Sequence[StoredModel], now_s: float) -> str:
    """`ls`."""
    if not models:
        return "no models in this store"
    rows = []
    for model in models:
        state = "warm" if model.warm else f"warming {_percent(model)}"
        pinned = "pinned" if any(lease.kind == "pin" for lease in model.leases) else ""
        rows.append(
            (
                model.model_id[:SHORT_ID],
                state,
                units.size(model.size_bytes),
                str(model.files),
                _ago(model.last_used_s, now_s),
                "+".join(sorted(model.verified)) or "-",
                memory_text(model),
                pinned,
                ", ".join(model.refs) or "-",
            )
        )
    return table(
        ("MODEL", "STATE", "SIZE", "FILES", "USED", "CHECKED BY", "MEMORY", "", "REF"), rows
    )


def memory_text(model: StoredModel) -> str:
    """What of a model is in memory: the share of it in the page cache, and whether it is copied."""
    memory = model.memory
    told = "?"
    if memory.resident_bytes is not None:
        told = f"{100 * memory.resident_bytes // max(1, model.size_bytes)}%"
    return f"{told}, locked" if memory.copy_path else told


def model_json(model: StoredModel) -> dict[str, Any]:
    """One entry of `ls --json`."""
    return {
        "model_id": model.model_id,
        "refs": list(model.refs),
        "state": "warm" if model.warm else "warming",
        "files": model.files,
        "size_bytes": model.size_bytes,
        "present_bytes": model.present_bytes,
        "last_used_s": model.last_used_s,
        "verified_bytes": model.verified,
        "leases": [
            {"kind": lease.kind, "note": lease.note, "pid": lease.pid} for lease in model.leases
        ],
        "path": str(model.path) if model.path else None,
        "memory": memory_json(model.memory),
    }


def memory_json(memory: MemoryUse) -> dict[str, Any]:
    """What of a model is in memory."""
    return {
        "resident_bytes": memory.resident_bytes,
        "copy_bytes": memory.copy_bytes,
        "copy_path": str(memory.copy_path) if memory.copy_path else None,
    }


def show_text(model: StoredModel, files: Sequence[StoredFile]) -> str:
    """`show`."""
    leases = ", ".join(f"{lease.kind} {lease.note}".strip() for lease in model.leases)
    head = [
        f"model     {model.model_id}",
        f"refs      {', '.join(model.refs) or '-'}",
        f"state     {'warm' if model.warm else 'warming ' + _percent(model)}",
        f"size      {units.size(model.size_bytes)} in {units.count(model.files, 'file')}",
        f"checked   {verified_text(model.verified) or '-'}",
        f"leases    {leases or '-'}",
        f"snapshot  {model.path or '-'}",
        f"memory    {memory_text(model)}",
    ]
    rows = [
        (
            item.file.path,
            units.size(item.file.size_bytes),
            (item.verified or _UNVERIFIED) if item.present else "missing",
            item.file.blob[:24],
        )
        for item in files
    ]
    return "\n".join([*head, "", table(("FILE", "SIZE", "CHECKED BY", "BLOB"), rows)])


def difference_text(difference: Difference) -> str:
    """`show --diff`: what is not the same, and what it costs."""
    rows = [
        (
            change.change.value,
            f"{change.before} -> {change.path}" if change.before else change.path,
            units.size(change.size_bytes),
        )
        for change in difference.files
        if change.change is not Change.SAME
    ]
    same = sum(change.change is Change.SAME for change in difference.files)
    tail = [
        f"shared    {units.size(difference.shared_bytes)}, {units.count(same, 'file')} unchanged",
        f"to fetch  {units.size(difference.fetch_bytes)}",
        f"freed     {units.size(difference.freed_bytes)} by removing the first",
    ]
    return "\n".join([table(("CHANGE", "FILE", "SIZE"), rows), "", *tail] if rows else tail)


def difference_json(difference: Difference) -> dict[str, Any]:
    """`show --diff --json`."""
    return {
        "shared_bytes": difference.shared_bytes,
        "fetch_bytes": difference.fetch_bytes,
        "freed_bytes": difference.freed_bytes,
        "files": [
            {
                "path": change.path,
                "change": change.change.value,
                "size_bytes": change.size_bytes,
                "before": change.before,
            }
            for change in difference.files
        ],
    }


def show_json(model: StoredModel, files: Sequence[StoredFile]) -> dict[str, Any]:
    """`show --json`."""
    return {
        **model_json(model),
        "file_list": [
            {
                "path": item.file.path,
                "size_bytes": item.file.size_bytes,
                "blob": item.file.blob,
                "present": item.present,
                "verified": item.verified,
                "etag": item.file.pin.etag,
                "version": item.file.pin.version,
                "modified": item.file.pin.modified,
            }
            for item in files
        ],
    }


def verify_json(results: Sequence[VerifyResult]) -> list[dict[str, Any]]:
    """`verify --json`."""
    return [
        {
            "model_id": result.model_id,
            "files": result.files,
            "size_bytes": result.size_bytes,
            "bad_chunks": result.bad,
            "repaired": result.repaired,
            "seconds": result.seconds,
        }
        for result in results
    ]


def verify_text(results: Sequence[VerifyResult]) -> str:
    """`verify`."""
    lines = []
    for result in results:
        speed = units.rate(result.size_bytes / max(result.seconds, 1e-9))
        short = result.model_id[:SHORT_ID]
        if not result.bad:
            lines.append(f"{short}: intact, {units.size(result.size_bytes)} at {speed}")
            continue
        for path, chunks in result.bad.items():
            lines.append(f"{short}: {path}: {units.count(len(chunks), 'bad chunk')}")
        lines.append(f"{short}: {'repaired' if result.repaired else 'DAMAGED, not repaired'}")
    return "\n".join(lines) or "no models in this store"


def usage_json(usage: Usage) -> dict[str, Any]:
    """`du --json`."""
    return {
        "blobs_bytes": usage.blobs_bytes,
        "blobs": usage.blobs,
        "partial_bytes": usage.partial_bytes,
        "quota_bytes": usage.quota_bytes or None,
        "free_bytes": usage.free_bytes,
        "filesystem_bytes": usage.filesystem_bytes,
        "models": [
            {"model_id": model_id, "size_bytes": total, "unique_bytes": unique}
            for model_id, (total, unique) in usage.models.items()
        ],
    }


def usage_text(usage: Usage, refs: Mapping[str, str]) -> str:
    """`du`. refs: a name for each model."""
    rows = [
        (model_id[:SHORT_ID], units.size(total), units.size(unique), refs.get(model_id, "-"))
        for model_id, (total, unique) in usage.models.items()
    ]
    quota = units.size(usage.quota_bytes) if usage.quota_bytes else "none"
    tail = (
        f"{units.size(usage.blobs_bytes)} in {units.count(usage.blobs, 'blob')}, "
        f"{units.size(usage.partial_bytes)} under way, quota {quota}, "
        f"{units.size(usage.free_bytes)} free of {units.size(usage.filesystem_bytes)}"
    )
    return f"{table(('MODEL', 'SIZE', 'FREED IF REMOVED', 'REF'), rows)}\n{tail}"


def garbage_json(report: GarbageReport) -> dict[str, Any]:
    """`gc --json`."""
    return {
        "freed_bytes": report.freed_bytes,
        "blobs": report.blobs,
        "partials": report.partials,
        "leases": report.leases,
        "evicted": report.evicted,
    }


def garbage_text(report: GarbageReport) -> str:
    """`gc`."""
    return (
        f"freed {units.size(report.freed_bytes)}: {units.count(report.blobs, 'orphaned blob')}, "
        f"{units.count(report.partials, 'stale partial')}, "
        f"{units.count(len(report.evicted), 'model')} evicted, "
        f"{units.count(report.leases, 'dead lease')}"
    )


def explain_text(report: Report) -> str:
    """`explain`: where the time went, where the bytes came from, what went wrong on the way."""
    wall = max(report.wall_s, 1e-9)
    phases = [
        ("resolving", report.resolving_s),
        ("waiting for others", report.lock_wait_s),
        ("transferring", report.transfer_s),
        ("publishing", report.publishing_s),
    ]
    workers = report.workers
    parts = [
        ("waiting for work", workers.waiting_s),
        ("signing", workers.signing_s),
        ("connecting", workers.connecting_s),
        ("first byte", workers.first_byte_s),
        ("receiving", workers.receiving_s),
        ("hashing", workers.hashing_s),
        ("writing", workers.writing_s),
        ("verifying", workers.verifying_s),
    ]
    busy = max(sum(seconds for _, seconds in parts), 1e-9)
    rate = report.fetched_bytes / max(report.transfer_s, 1e-9)
    lines = [
        f"{report.ref} (model {report.model_id[:SHORT_ID]})",
        (
            f"{units.size(report.fetched_bytes)} fetched in {units.duration(report.wall_s)}, "
            f"{units.rate(rate)} while transferring, {report.io or 'no'} writes, "
            f"{report.connections_peak} connections at most, {report.cpu_s:.2f} s of CPU"
        ),
        "",
        table(
            ("PHASE", "TIME", "SHARE"),
            [(n, units.duration(s), f"{100 * s / wall:.0f} %") for n, s in phases],
        ),
        "",
        table(
            ("WORKERS' TIME", "SUM", "SHARE"),
            [(n, units.duration(s), f"{100 * s / busy:.0f} %") for n, s in parts],
        ),
        "",
        table(
            ("SOURCE", "BYTES", "REQUESTS", "CONNECTIONS", "HEDGES", "FAILURES"),
            [
                (
                    name,
                    units.size(source.received_bytes),
                    str(source.requests),
                    str(source.connections),
                    str(source.hedges),
                    ", ".join(f"{code} {n}" for code, n in source.failures.items()) or "-",
                )
                for name, source in report.sources.items()
            ],
        ),
    ]
    if report.verified:
        lines += ["", f"checks: {verified_text(report.verified)}"]
    if report.unpacked_bytes:
        size, seconds = units.size(report.unpacked_bytes), units.duration(report.unpacking_s)
        lines += ["", f"unpacked: {size}, {seconds} of decompressing, hashing and writing"]
    if report.notes:
        lines += ["", *report.notes]
    if report.events:
        lines += ["", "on the way:", *(f"  {event}" for event in report.events)]
    return "\n".join([*lines, "", bottleneck(report)])


def bottleneck(report: Report) -> str:
    """One sentence that names what to look at first."""
    if not report.fetched_bytes:
        return "Nothing was fetched."
    if report.resolving_s > report.transfer_s:
        return "Most of the time went into asking the origin; a longer --max-age spares that."
    workers = report.workers
    waits = {
        "the network: bytes came slower than they were hashed and written": workers.receiving_s,
        "the disk: writes took longer than receiving": workers.writing_s,
        "the CPU: hashing took longest": workers.hashing_s,
        "the origin's answers: requests waited for their first byte": workers.first_byte_s
        + workers.connecting_s,
    }
    if workers.waiting_s > sum(waits.values()):
        return "What set the pace was a limit or a pause: workers waited more than they worked."
    return f"What set the pace was {max(waits, key=lambda reason: waits[reason])}."


def _percent(model: StoredModel) -> str:
    return f"{100 * model.present_bytes // max(1, model.size_bytes)} %"
