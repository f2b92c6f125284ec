"""What a store goes through, in pieces that may be cut anywhere and begun again.

Each says what it has finished; what was said must be there, whatever happens next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from modelcache.domain.manifests import Manifest
from modelcache.store import Store, WriteMode, repair, room, staging
from tests.store.promises import (
    DAMAGED,
    LARGE,
    MODEL,
    OTHER,
    SHARED,
    SMALL,
    check,
    check_mended,
    check_shared,
    keeps_other,
    origin_file,
)
from tests.store.striking import Say
from tests.store.support import (
    CHUNK,
    LATER_S,
    ORIGIN,
    archive_of,
    chunk_hashes,
    collect,
    content_id,
    listing_of,
    manifest_of,
    open_store,
    put,
    put_model,
    put_small,
    random_bytes,
    stage,
    wall_clock_s,
    write_chunk,
    write_missing,
    writing,
)


def nothing(_: object) -> None:
    """Nobody was here, or is told."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One piece. prepare: what is there before. run: idempotent. left: the models at its end.

    check: what holds at any moment, given what was said; a model that is not in `left` at the end
    of a scenario is warming, and goes with the garbage.
    """

    name: str
    prepare: Callable[[Store], object]
    run: Callable[[Store, Say], object]
    check: Callable[[Store, list[str]], None] = check
    left: tuple[dict[str, bytes], ...] = ()


def write_blob(store: Store, say: Say) -> None:
    blob = content_id(LARGE)
    with store.begin_model(manifest_of(MODEL), "test"):
        if store.has_blob(blob, len(LARGE)):
            return
        with writing(store, LARGE, mode=WriteMode.DIRECT) as writer:
            for chunk in range(writer.grid.count):
                if not writer.is_done(chunk):
                    write_chunk(writer, LARGE, chunk)
                say(f"chunk:{chunk}")
            writer.publish(verified="sha256")


def prepare_small(store: Store) -> None:
    put_model(store, OTHER)
    store.begin_model(manifest_of(MODEL), "test").release()


def write_small(store: Store, _: Say) -> None:
    with store.begin_model(manifest_of(MODEL), "test"):
        put_small(store, [*SMALL.values(), b""])


def prepare_show(store: Store) -> None:
    write_blob(store, nothing)
    put(store, SHARED)
    put_small(store, [*SMALL.values(), b""])


def show(store: Store, say: Say) -> None:
    with store.begin_model(manifest_of(MODEL), "test"):
        store.add_model(manifest_of(MODEL))
        say("warm")


def pull(store: Store, say: Say) -> None:
    write_blob(store, say)
    put_model(store, MODEL)
    say("warm")


def put_other(store: Store) -> None:
    put_model(store, OTHER)


def relocate(store: Store, _: Say) -> None:
    """The same files were found at another origin: a manifest that is in use is replaced."""
    store.begin_model(manifest_of(OTHER, "s3://mirror/model"), "test").release()


def two_models(store: Store) -> None:
    put_model(store, MODEL)
    put_model(store, OTHER)


def remove(store: Store, _: Say) -> None:
    store.remove_model(manifest_of(MODEL).model_id)


def leave_garbage(store: Store) -> None:
    put_model(store, OTHER)
    put(store, random_bytes(5000, 50))
    put_small(store, [random_bytes(50, 51)])
    with writing(store, LARGE) as writer:
        write_chunk(writer, LARGE, 0)
    store.begin_model(manifest_of(MODEL), "test").release()
    for name in (".store.json.0.tmp", "blobs/00/.x.receipt.0.tmp"):
        path = store.layout.root / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (store.layout.trash / "tree" / "below").mkdir(parents=True)
    (store.layout.trash / "tree" / "file").touch()


def collect_all(store: Store, _: Say) -> None:
    collect(store)


def evict(store: Store, _: Say) -> None:
    tight = open_store(store.layout.root, quota_bytes=len(LARGE) + 2 * CHUNK)
    keep = manifest_of(OTHER).model_id
    room.reserve(tight, len(LARGE), keep=keep, now_s=wall_clock_s() + LATER_S)


def pin(store: Store, say: Say) -> None:
    store.pin(manifest_of(OTHER).model_id, "kept")
    say("pinned")


def unpin(store: Store, _: Say) -> None:
    store.unpin(manifest_of(OTHER).model_id)


def prepare_unpin(store: Store) -> None:
    put_model(store, OTHER)
    pin(store, nothing)


def damage(store: Store) -> None:
    put_model(store, MODEL)
    path = store.layout.blob(content_id(LARGE))
    path.chmod(0o600)
    path.write_bytes(DAMAGED)


def mend(store: Store, say: Say) -> None:
    blob, manifest = content_id(LARGE), manifest_of(MODEL)
    with store.begin_model(manifest, "test"):
        bad = repair.bad_chunks(store, blob, len(LARGE))
        if bad:
            writer = repair.reopen(store, blob, len(LARGE), bad, mode=WriteMode.BUFFERED)
            try:
                write_missing(writer, LARGE)
                writer.publish(verified="sha256")
            finally:
                writer.close()
        store.mend_snapshot(manifest)
        say("warm")


def prepare_share(store: Store) -> None:
    put_model(store, OTHER)
    store.begin_model(manifest_of(MODEL), "test").release()
    origin_file(store).write_bytes(LARGE)
    origin_file(store).chmod(0o640)


def share(store: Store, _: Say) -> None:
    with store.begin_model(manifest_of(MODEL), "test"):
        if store.has_blob(content_id(LARGE), len(LARGE)):
            return
        with writing(store, LARGE) as writer:
            if writer.share(origin_file(store), link=True):
                for chunk, value in enumerate(chunk_hashes(LARGE)):
                    writer.finish_chunk(chunk, value, None)
            write_missing(writer, LARGE)
            writer.publish(verified=None)


def unpack(store: Store, say: Say) -> None:
    with store.begin_model(PACKED, "test"):
        if store.listing(ARCHIVE) is None or not has_all(store, UNPACKED):
            stage_and_publish(store)
        with store.begin_model(UNPACKED, "test"):
            store.add_model(UNPACKED)
            say("warm")
    store.remove_model(PACKED.model_id)


def stage_and_publish(store: Store) -> None:
    folder = store.staging_folder()
    try:
        staged = [stage(folder, data) for data in MODEL.values()]
        store.save_listing(ARCHIVE, listing_of(MODEL))
        with store.begin_model(UNPACKED, "test"):
            staging.publish(store.layout, staged)
    finally:
        folder.close()


def has_all(store: Store, manifest: Manifest) -> bool:
    return all(store.has_blob(blob, file.size_bytes) for blob, file in manifest.blobs().items())


ARCHIVE = archive_of(b"the layer")
PACKED = Manifest.of(ORIGIN, [], archives=[ARCHIVE])
UNPACKED = replace(manifest_of(MODEL), unpacked_from=(ARCHIVE,))

SCENARIOS = (
    Scenario("write_blob", nothing, write_blob),
    Scenario("write_small", prepare_small, write_small, keeps_other, (OTHER,)),
    Scenario("show", prepare_show, show, check, (MODEL,)),
    Scenario("pull", nothing, pull, check, (MODEL,)),
    Scenario("share", prepare_share, share, check_shared, (OTHER,)),
    Scenario("unpack", put_other, unpack, keeps_other, (MODEL, OTHER)),
    Scenario("mend", damage, mend, check_mended, (MODEL,)),
    Scenario("relocate", put_other, relocate, keeps_other, (OTHER,)),
    Scenario("remove", two_models, remove, keeps_other, (OTHER,)),
    Scenario("evict", two_models, evict, keeps_other, (OTHER,)),
    Scenario("collect", leave_garbage, collect_all, keeps_other, (OTHER,)),
    Scenario("pin", put_other, pin, keeps_other, (OTHER,)),
    Scenario("unpin", prepare_unpin, unpin, keeps_other, (OTHER,)),
)
