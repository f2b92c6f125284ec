"""The journal of a blob under way: what it vouches for, and what damage costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid
from modelcache.store import journal as journals
from modelcache.store.journal import ChunkRecord, Journal
from tests.store.support import CHUNK, content_id, random_bytes, write_chunk, writing

BLOB = BlobId("sha256-" + "0" * 64)
GRID = ChunkGrid(3 * CHUNK + 100, CHUNK)
HEADER, RECORD = 80, 40
RECORDS = {0: ChunkRecord(b"a" * 16, 7), 3: ChunkRecord(b"b" * 16, None)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of two chunks."""
    found = tmp_path / "journal"
    journal = Journal.create(found, BLOB, GRID)
    for chunk, record in RECORDS.items():
        journal.add(chunk, record)
    journal.close()
    return found


def read(path: Path, blob: BlobId = BLOB, size_bytes: int = GRID.size_bytes) -> Journal | None:
    journal = Journal.open(path, blob, size_bytes)
    if journal is not None:
        journal.close()
    return journal


def test_what_was_added_is_found_again(path):
    journal = read(path)
    assert journal.records == RECORDS
    assert journal.grid == GRID
    assert journal.trusted
    assert path.stat().st_size == HEADER + 2 * RECORD


def test_a_chunk_that_was_forgotten_is_not_there_until_it_is_added_again(path):
    journal = Journal.open(path, BLOB, GRID.size_bytes)
    journal.forget(0)
    assert read(path).records == {3: RECORDS[3]}
    journal.add(0, ChunkRecord(b"c" * 16, None))
    journal.close()
    assert read(path).records == {0: ChunkRecord(b"c" * 16, None), 3: RECORDS[3]}


def test_a_record_torn_at_any_byte_costs_that_record_only(path):
    whole = path.read_bytes()
    for length in range(HEADER + RECORD, HEADER + 2 * RECORD):
        path.write_bytes(whole[:length])
        journal = Journal.open(path, BLOB, GRID.size_bytes)
        assert journal.records == {0: RECORDS[0]}
        journal.add(1, RECORDS[3])  # what follows must be in step again
        journal.close()
        assert read(path).records == {0: RECORDS[0], 1: RECORDS[3]}
        assert read(path).trusted


def test_a_header_torn_at_any_byte_makes_no_journal(path):
    whole = path.read_bytes()
    for length in range(HEADER):
        path.write_bytes(whole[:length])
        assert read(path) is None


def test_a_flipped_bit_in_a_record_costs_it_and_makes_the_others_doubtful(path):
    whole = path.read_bytes()
    for at in range(HEADER, HEADER + RECORD):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        journal = read(path)
        assert journal.records == {3: RECORDS[3]}, at
        assert not journal.trusted  # the lost record may have said: forget chunk 3


def test_a_flipped_bit_in_the_header_makes_no_journal(path):
    whole = path.read_bytes()
    for at in range(HEADER):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        assert read(path) is None, at


def test_a_journal_of_another_blob_or_size_is_not_continued(path):
    assert read(path, BlobId("sha256-" + "1" * 64)) is None
    assert read(path, size_bytes=GRID.size_bytes + 1) is None
    assert read(path.with_name("nothing")) is None


def test_a_chunk_beyond_the_blob_is_not_believed(path):
    journal = Journal.open(path, BLOB, GRID.size_bytes)
    journal.add(GRID.count, RECORDS[0])
    journal.close()
    assert read(path).records == RECORDS
    assert not read(path).trusted


def test_a_doubt_outlives_the_process_that_had_it(path):
    journal = Journal.open(path, BLOB, GRID.size_bytes)
    journal.doubt()
    assert not journal.trusted
    journal.close()
    assert read(path).records == RECORDS
    assert not read(path).trusted


def test_a_journal_of_another_start_of_the_machine_is_not_trusted(path, monkeypatch):
    monkeypatch.setattr(journals, "boot_id", lambda: b"another boot id.")
    assert read(path).records == RECORDS
    assert not read(path).trusted


def test_a_kernel_without_boot_id_vouches_for_nothing(path, monkeypatch, tmp_path):
    monkeypatch.setattr(journals, "_BOOT_ID", tmp_path / "nothing")
    assert journals.boot_id() != journals.boot_id()
    assert not read(path).trusted


# What a writer makes of it


@pytest.fixture
def half_done(store):
    """A blob with chunks 0 to 2 of 4 stored, the data and the journal of it."""
    data = random_bytes(3 * CHUNK + 100)
    with writing(store, data) as writer:
        for chunk in range(3):
            write_chunk(writer, data, chunk)
    folder = store.layout.partial_blob(content_id(data))
    return data, folder / "data", folder / "journal"


def done(store, data):
    with writing(store, data) as writer:
        return writer.done


def test_chunks_of_another_boot_are_hashed_and_only_the_right_ones_kept(
    store, half_done, monkeypatch
):
    data, file, _ = half_done
    with file.open("r+b") as opened:  # the power cut came before this page was written back
        opened.seek(CHUNK + 5)
        opened.write(b"\0")
    monkeypatch.setattr(journals, "boot_id", lambda: b"another boot id.")
    assert done(store, data) == {0, 2}
    assert done(store, data) == {0, 2}


def test_what_was_hashed_after_a_boot_is_trusted_from_then_on(store, half_done, monkeypatch):
    data, file, journal = half_done
    monkeypatch.setattr(journals, "boot_id", lambda: b"another boot id.")
    assert done(store, data) == {0, 1, 2}
    assert read(journal, content_id(data), len(data)).trusted
    file.write_bytes(bytes(len(data)))
    assert done(store, data) == {0, 1, 2}  # nobody hashes twice for one boot


def test_records_that_were_hashed_keep_their_crc(store, half_done, monkeypatch):
    data, _, _ = half_done
    monkeypatch.setattr(journals, "boot_id", lambda: b"another boot id.")
    with writing(store, data) as writer:
        assert [writer.crc(chunk) for chunk in range(3)] == [0, 1, 2]


def test_a_damaged_record_costs_its_chunk_and_bad_bytes_cost_theirs(store, half_done):
    data, file, journal = half_done
    damaged = bytearray(journal.read_bytes())
    damaged[HEADER + 10] ^= 1
    journal.write_bytes(damaged)
    assert done(store, data) == {1, 2}
    damaged[HEADER + RECORD + 10] ^= 1
    journal.write_bytes(damaged)
    with file.open("r+b") as opened:
        opened.seek(2 * CHUNK)
        opened.write(b"wrong")
    assert done(store, data) == frozenset()


def test_a_damaged_header_costs_the_partial_but_not_the_blob(store, half_done):
    data, _, journal = half_done
    journal.write_bytes(b"x" + journal.read_bytes()[1:])
    assert done(store, data) == frozenset()
    assert store.partial_bytes(content_id(data)) == 0


def test_data_that_was_cut_behind_our_back_is_fetched_anew(store, half_done):
    data, file, _ = half_done
    with file.open("r+b") as opened:
        opened.truncate(CHUNK)
    assert done(store, data) == frozenset()


def test_data_without_a_journal_counts_for_nothing(store, half_done):
    data, _, journal = half_done
    journal.unlink()
    assert done(store, data) == frozenset()


def test_a_journal_without_data_counts_for_nothing(store, half_done):
    data, file, _ = half_done
    file.unlink()
    assert done(store, data) == frozenset()


def test_stored_bytes_are_read_from_the_journal_without_disturbing_the_writer(store):
    data = random_bytes(3 * CHUNK + 100)
    with writing(store, data) as writer:
        write_chunk(writer, data, 3)
        assert store.partial_bytes(writer.blob) == 100
        write_chunk(writer, data, 0)
        assert store.partial_bytes(writer.blob) == CHUNK + 100
