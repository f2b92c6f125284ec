"""Results as people read them and as programs do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.agent import Snapshot, StoredModel, VerifyResult
from modelcache.agent.memory import MemoryUse
from modelcache.domain.manifests import ModelId
from modelcache.faces import present
from modelcache.store.leases import LeaseInfo
from modelcache.store.room import GarbageReport, Usage
from modelcache.transfer.report import Report, SourceReport, WorkerTimes
from tests.faces.reports import report

ID = ModelId("ab" * 32)


def model(*, warm: bool = True, pinned: bool = False) -> StoredModel:
    return StoredModel(
        model_id=ID,
        refs=("s3://b/m", "https://h/m"),
        files=5,
        size_bytes=1000,
        present_bytes=1000 if warm else 299,
        warm=warm,
        last_used_s=100.0,
        leases=(LeaseInfo("pin", "demo", 7),) if pinned else (),
        verified={"sha256": 900, "none": 100},
        path=Path("/store/snapshots/x") if warm else None,
        memory=MemoryUse(629, 1000, Path("/mnt/x")) if warm else MemoryUse(),
    )


def snapshot(**more) -> Snapshot:
    return Snapshot(Path("/store/snapshots/x"), ID, "s3://b/m", **more)


def test_columns_are_aligned_and_nothing_trails():
    lines = present.table(("A", "B"), [("long cell", "x"), ("y", "")]).splitlines()
    assert lines == ["A          B", "long cell  x", "y"]


def test_json_is_one_document_with_names_as_they_are(capsys):
    present.print_json({"path": "/a/ü", "inner": {"p": Path("/x")}})
    out = capsys.readouterr().out
    assert json.loads(out) == {"path": "/a/ü", "inner": {"p": "/x"}}
    assert "ü" in out
    assert out.endswith("}\n")


def test_a_pull_is_summed_up_with_bytes_time_rate_and_checks():
    lines = present.snapshot_text(snapshot(fetched_bytes=7, report=report(present_bytes=10)))
    assert lines.splitlines() == [
        "pulled s3://b/m as model abababababab: 5 files, 4.0 GB",
        "  fetched 4.0 GB in 4.0 s (1.3 GB/s, 8 connections at most)",
        "  10 B were here already",
        "  checks: crc64nvme 4.0 GB, unverified by origin 12.0 kB",
    ]


def test_a_warm_model_says_whether_its_origin_was_asked():
    assert "origin was not asked" in present.snapshot_text(snapshot(from_cache=True))
    asked = present.snapshot_text(snapshot(report=Report("s3://b/m", resolving_s=0.5)))
    assert "nothing to fetch, its origin was asked in 500 ms" in asked


def test_a_model_that_was_never_used_has_no_age():
    never = replace(model(warm=False), last_used_s=0.0)
    lines = present.models_text([never], 1.8e9).splitlines()
    assert re.split(" {2,}", lines[1])[4] == "-"


def test_ls_tells_state_age_checks_pins_and_every_ref():
    lines = present.models_text([model(pinned=True), model(warm=False)], 160.0).splitlines()
    assert re.split(" {2,}", lines[1]) == [
        *("abababababab", "warm", "1.0 kB", "5", "1m 00s ago"),
        *("none+sha256", "62%, locked", "pinned", "s3://b/m, https://h/m"),
    ]
    assert "warming 29 %" in lines[2]
    assert "  ?  " in lines[2]


def test_a_model_that_is_not_complete_is_not_a_hundred_percent():
    almost = StoredModel(ID, (), 1, 1000, 999, False, 0.0, (), {}, None)
    assert "99 %" in present.models_text([almost], 0.0)


def test_a_model_of_a_clock_ahead_of_ours_was_used_just_now():
    assert "0 ms ago" in present.models_text([model()], 50.0)


def test_an_empty_store_is_named_as_such():
    assert present.models_text([], 0.0) == "no models in this store"
    assert present.verify_text([]) == "no models in this store"


def test_ls_json_has_the_whole_id_plain_numbers_and_leases():
    plain = json.loads(json.dumps(present.model_json(model(pinned=True))))
    assert plain == {
        "model_id": ID,
        "refs": ["s3://b/m", "https://h/m"],
        "state": "warm",
        "files": 5,
        "size_bytes": 1000,
        "present_bytes": 1000,
        "last_used_s": 100.0,
        "verified_bytes": {"sha256": 900, "none": 100},
        "leases": [{"kind": "pin", "note": "demo", "pid": 7}],
        "path": "/store/snapshots/x",
        "memory": {"resident_bytes": 629, "copy_bytes": 1000, "copy_path": "/mnt/x"},
    }
    assert present.model_json(model(warm=False))["path"] is None


def test_verify_names_each_damaged_file_and_what_became_of_it():
    good = VerifyResult(ID, files=1, size_bytes=1000, seconds=0.5)
    bad = VerifyResult(ID, 2, 1000, {"a.bin": [0, 4], "b.bin": [1]}, repaired=True)
    left = VerifyResult(ID, 1, 1000, {"a.bin": [0]})
    assert present.verify_text([good, bad, left]).splitlines() == [
        "abababababab: intact, 1.0 kB at 2.0 kB/s",
        "abababababab: a.bin: 2 bad chunks",
        "abababababab: b.bin: 1 bad chunk",
        "abababababab: repaired",
        "abababababab: a.bin: 1 bad chunk",
        "abababababab: DAMAGED, not repaired",
    ]
    assert present.verify_json([bad])[0]["bad_chunks"] == {"a.bin": [0, 4], "b.bin": [1]}


def test_du_tells_what_each_removal_would_free():
    usage = Usage(
        blobs_bytes=1500,
        blobs=3,
        partial_bytes=0,
        quota_bytes=0,
        free_bytes=10**9,
        filesystem_bytes=10**10,
        models={ID: (1000, 200)},
    )
    head, row, tail = present.usage_text(usage, {ID: "s3://b/m"}).splitlines()
    assert head.split() == ["MODEL", "SIZE", "FREED", "IF", "REMOVED", "REF"]
    assert row.split() == ["abababababab", "1.0", "kB", "200", "B", "s3://b/m"]
    assert tail == "1.5 kB in 3 blobs, 0 B under way, quota none, 1.0 GB free of 10.0 GB"
    assert present.usage_json(usage)["quota_bytes"] is None


def test_gc_counts_in_words():
    found = GarbageReport(freed_bytes=1000, blobs=1, partials=2, leases=0, evicted=[ID])
    assert present.garbage_text(found) == (
        "freed 1.0 kB: 1 orphaned blob, 2 stale partials, 1 model evicted, 0 dead leases"
    )


def test_explain_has_phases_workers_sources_and_what_happened():
    text = present.explain_text(report())
    assert "resolving           500 ms  12 %" in text
    assert "receiving         20.0 s  87 %" in text
    assert "s3://b/m  4.0 GB  300       8            1       throttled 2" in text
    assert "  range 3 of a.bin: 503 from s3://b/m, again in 0.2 s" in text
    assert text.splitlines()[-1] == present.bottleneck(report())


def test_explain_of_a_report_without_anything_divides_by_nothing():
    assert present.explain_text(Report("s3://b/m")).endswith("Nothing was fetched.")


@pytest.mark.parametrize(
    ("workers", "word"),
    [
        (WorkerTimes(receiving_s=3, waiting_s=2), "network"),
        (WorkerTimes(writing_s=3, receiving_s=2), "disk"),
        (WorkerTimes(hashing_s=3, receiving_s=2), "CPU"),
        (WorkerTimes(first_byte_s=2, connecting_s=1, receiving_s=2), "answers"),
        (WorkerTimes(waiting_s=10, receiving_s=1, writing_s=2), "limit"),
    ],
)
def test_the_sentence_names_what_took_longest(workers, word):
    assert word in present.bottleneck(report(workers=workers))


def test_a_slow_listing_is_answered_with_max_age():
    assert "--max-age" in present.bottleneck(report(resolving_s=9.0))


def test_a_report_survives_being_stored_and_versions_to_come():
    before = report(sources={"s3://b/m": SourceReport(1, 2, 3, 4, {"x": 5})})
    plain = json.loads(json.dumps({**before.to_json(), "of_a_newer_version": 1}))
    assert Report.from_json(plain) == before


def test_explain_tells_what_came_out_of_archives():
    text = present.explain_text(report(unpacked_bytes=3_000_000_000, unpacking_s=4.0))
    assert "unpacked: 3.0 GB, 4.0 s of decompressing" in text
    assert "unpacked" not in present.explain_text(report())
