"""The parts of the filesystem that need no kernel."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from modelcache.domain.ranges import MIB, ByteRange
from modelcache.mounts.fuse import Tree, protocol
from modelcache.mounts.fuse.parking import PARKED_MAX, Parked, Parking
from modelcache.mounts.fuse.protocol import Head, Offer
from modelcache.mounts.fuse.windows import SEQUENTIAL_BYTES, Window

FILES = [("a/b/weights", 10 * MIB), ("a/config.json", 12), ("readme", 0)]
CHUNK = 16 * MIB


def parked(unique: int, until_s: float = 1.0) -> Parked:
    return Parked(unique, 1, 0, 0, 4096, until_s)


def names(packed: bytes, before: int) -> list[tuple[int, bytes]]:
    """Offset and name of each entry of a listing; `before` bytes stand before each."""
    found = []
    while packed:
        _, following, size, _ = struct.unpack_from("<QQII", packed, before)
        found.append((following, packed[before + 24 : before + 24 + size]))
        packed = packed[before + 24 + -(-size // 8) * 8 :]
    return found


# The tree


def test_a_tree_has_its_folders_and_numbers_its_files_as_they_came():
    tree = Tree(FILES, 7)
    assert [node.attributes.size_bytes for node in tree.files] == [10 * MIB, 12, 0]
    assert [node.number for node in tree.files] == [0, 1, 2]
    assert list(tree.root.children) == [b"a", b"readme"]
    assert tree.size_bytes == 10 * MIB + 12
    assert len({node.node_id for node in tree.nodes}) == len(tree.nodes)


def test_a_file_of_another_epoch_has_another_id_and_the_old_one_is_known_still():
    tree = Tree(FILES, 7)
    node = tree.files[0]
    before = node.node_id
    node.begin_epoch()
    assert tree.find(before) == (node, 0)
    assert tree.find(node.node_id) == (node, 1)


@pytest.mark.parametrize("node_id", [0, 7, 99, 1 | 1 << 40, 1 << 63])
def test_an_id_that_never_was_is_refused(node_id: int):
    with pytest.raises(KeyError):
        Tree(FILES, 7).find(node_id)


def test_the_next_process_has_the_same_ids_from_what_the_first_has_written():
    tree, after = Tree(FILES, 7), Tree(FILES, 7)
    tree.files[0].begin_epoch()
    tree.files[0].wrong.add(0)
    tree.files[0].backing = 3
    tree.files[1].cached = True
    after.restore(tree.to_json())
    assert [node.to_json() for node in after.files] == [node.to_json() for node in tree.files]


@pytest.mark.parametrize(("plus", "before"), [(False, 0), (True, 128)])
def test_a_listing_goes_on_where_it_was_cut(plus: bool, before: int):
    tree = Tree([(f"file-{n:04d}", n) for n in range(100)], 7)
    found: list[tuple[int, bytes]] = []
    while more := names(tree.listing(tree.root, len(found), 1000, plus=plus, valid_s=1), before):
        found += more
    assert [offset for offset, _ in found] == list(range(1, 103))
    assert [name for _, name in found[:3]] == [b".", b"..", b"file-0000"]
    assert len({name for _, name in found}) == 102


# What is said to the kernel


def test_only_what_both_have_is_agreed_on():
    request = bytearray(128)
    flags = protocol.ASYNC_READ | protocol.INIT_EXT | protocol.PASSTHROUGH | 1 << 50
    struct.pack_into("<IIIII", request, 40, 7, 44, 1 << 17, flags & 0xFFFFFFFF, flags >> 32)
    offer = Offer.of(request)
    assert (offer.major, offer.minor, offer.flags) == (7, 44, flags)
    agreed, answer = offer.accept(passthrough=True)
    assert agreed == flags & ~(1 << 50)
    assert len(answer) == 64
    assert struct.unpack_from("<IIII", answer) == (7, 44, 1 << 20, agreed & 0xFFFFFFFF)
    assert offer.accept(passthrough=False)[0] == protocol.ASYNC_READ | protocol.INIT_EXT


def test_records_have_the_sizes_that_the_kernel_checks():
    tree = Tree(FILES, 7)
    attributes = tree.files[0].attributes
    assert len(protocol.entry(5, attributes, 1)) == len(protocol.no_entry(1)) == 128
    assert len(protocol.attributes_answer(attributes, 1)) == 104
    assert len(protocol.open_answer(1, 2, 3)) == 16
    assert len(protocol.statfs(1, 1)) == 80
    assert len(protocol.forget_pages(1)) == 24
    assert len(protocol.forget_name(1, b"name")) == 16 + 5
    assert protocol.answer_head(9, 100, 5) == struct.pack("<IiQ", 116, -5, 9)


def test_a_request_that_is_cut_is_no_request():
    with pytest.raises(struct.error):
        Head.of(bytearray(39))


# Reads that wait


def test_a_read_is_answered_by_one_only():
    parking = Parking()
    assert parking.add(parked(1))
    assert parking.take(1) is not None
    assert parking.take(1) is None


def test_a_read_that_is_interrupted_before_it_waits_does_not_begin_to():
    parking = Parking()
    assert parking.interrupt(1) is None
    assert not parking.add(parked(1))
    assert parking.add(parked(1)), "only once: numbers come again after two to the sixty-third"
    assert parking.interrupt(1) is not None
    assert len(parking) == 0


def test_there_is_an_end_to_how_many_wait():
    parking = Parking()
    assert all(parking.add(parked(unique)) for unique in range(PARKED_MAX))
    assert not parking.add(parked(PARKED_MAX))


def test_the_first_to_be_over_is_looked_at_first():
    parking = Parking()
    assert parking.next_due_s() == float("inf")
    for unique, until_s in enumerate((3.0, 2.0, 5.0)):
        parking.add(parked(unique, until_s))
    assert parking.next_due_s() == 2.0


# How a file is read


def read_on(window: Window, start: int, end: int, step: int = MIB) -> list[ByteRange]:
    spans = [window.read(ByteRange(at, at + step)) for at in range(start, end, step)]
    return [span for span in spans if span is not None]


def test_a_reader_that_reads_on_gets_a_window_that_grows_to_its_limit():
    window = Window(CHUNK, 64 * MIB)
    assert read_on(window, 0, SEQUENTIAL_BYTES - MIB) == []
    told = read_on(window, SEQUENTIAL_BYTES - MIB, 200 * MIB)
    assert told[0].start == SEQUENTIAL_BYTES
    assert all(after.start == before.end for before, after in pairwise(told))
    assert max(span.size_bytes for span in told) <= 64 * MIB
    assert 200 * MIB + 64 * MIB - CHUNK <= told[-1].end <= 200 * MIB + 64 * MIB
    assert len(told) < 30, "told in steps"


def test_who_reads_here_and_there_gets_only_that():
    window = Window(CHUNK, 64 * MIB)
    starts = [(7919 * n % 1000) * 10 * MIB for n in range(200)]
    assert all(window.read(ByteRange(at, at + MIB)) is None for at in starts)


def test_pieces_of_readahead_may_come_in_another_order():
    window = Window(CHUNK, 64 * MIB)
    told = []
    for at in range(0, 20, 2):
        told += read_on(window, (at + 1) * MIB, (at + 2) * MIB) + read_on(
            window, at * MIB, (at + 1) * MIB
        )
    assert told


def test_who_begins_elsewhere_gets_another_window():
    window = Window(CHUNK, 64 * MIB)
    read_on(window, 0, 100 * MIB)
    assert window.read(ByteRange(500 * MIB, 501 * MIB)) is None
    told = read_on(window, 501 * MIB, 510 * MIB)
    assert told[0].start >= 500 * MIB + SEQUENTIAL_BYTES
