"""From a manifest with archives to the model it stands for, whose files are all in the store.

While that takes, there are two models: the packed one, which keeps the layers' chunks and lets the
next pull go on with them, and the one of files, which is written down before its first blob is
shown. The packed one is dropped in the end. A process that is killed at any moment leaves what
it had fetched to the next, and nothing that garbage collection does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic
from typing import Final

from modelcache.agent.fetching import Fetching
from modelcache.agent.unpacking.layers import Layers, Wish, only_unpacker, wish_all, wish_names
from modelcache.domain.layers import files_of, layer_of
from modelcache.domain.manifests import BlobId, Manifest
from modelcache.errors import CorruptData, Leased, NotFound
from modelcache.sources.source import Source
from modelcache.store import Store, staging

ROUNDS_MAX: Final = 3  # what is in the layers, then what is missing of them, and one for bad luck

Accepts = Callable[[str], bool]


@contextmanager
def unpacked(fetching: Fetching, source: Source, packed: Manifest) -> Iterator[Manifest]:
    """The model of files that `packed` stands for, protected; what it has from layers is here.

    Layers are fetched only for what is not known or not here. Raises what a fetch raises, and
    SourceRefused, UnsafePath or NotFound for layers that make no model.
    """
    store = fetching.store
    accepts = fetching.place.files.accepts
    note = fetching.report.ref
    with ExitStack() as held:
        model = _known(store, packed, accepts)
        if model is not None:
            held.enter_context(store.begin_model(model, note))
        if model is None or _lacking(store, model):
            held.enter_context(store.begin_model(packed, note))
            held.enter_context(only_unpacker(fetching, packed.archives))
            model = _bring(fetching, source, packed, held)
        yield model
    _drop(store, packed)


def _bring(fetching: Fetching, source: Source, packed: Manifest, held: ExitStack) -> Manifest:
    """Unpack until nothing is missing. `held` gets the model's lease."""
    store = fetching.store
    accepts = fetching.place.files.accepts
    layers = Layers(fetching, source, packed.model_id)
    started_s = monotonic()
    brought = 0
    for _ in range(ROUNDS_MAX):
        model = _known(store, packed, accepts)
        if model is not None:
            held.enter_context(store.begin_model(model, fetching.report.ref))
        wishes = _wishes(store, packed, model, accepts)
        if model is not None and not wishes:
            fetching.settle(brought)
            fetching.report.transfer_s += monotonic() - started_s
            return model
        plain = [
            file
            for blob, file in packed.blobs().items()
            if file in packed.files
            and file.size_bytes
            and not store.has_blob(blob, file.size_bytes)
        ]
        with layers.unpack(wishes, plain) as found:
            for item in found:
                store.save_listing(item.archive, item.listing)
            brought += sum(file.size_bytes for file in plain)
            model = _known(store, packed, accepts)
            if model is not None:
                held.enter_context(store.begin_model(model, fetching.report.ref))
                wanted = model.blobs()
                staged = [one for item in found for one in item.staged if one.blob in wanted]
                published = staging.publish(store.layout, staged)
                fetching.report.unpacked_bytes += published
                brought += published
    raise CorruptData(f"members of {packed.origin} do not stay in the store; pull again")


def _known(store: Store, packed: Manifest, accepts: Accepts) -> Manifest | None:
    """The model, if what is in its layers is known."""
    layers = []
    for archive in packed.archives:
        listing = store.listing(archive)
        if listing is None:
            return None
        layers.append((archive, listing))
    files = (*packed.files, *files_of(layers, accepts))
    if not files:
        raise NotFound(f"no file in the layers of {packed.origin} is one that the filter accepts")
    return Manifest.of(
        packed.origin,
        files,
        assemblies=packed.assemblies,
        notes=packed.notes,
        unpacked_from=packed.archives,
    )


def _lacking(store: Store, model: Manifest) -> set[BlobId]:
    """Blobs that come out of layers and are not here."""
    return {
        blob
        for blob, file in model.blobs().items()
        if layer_of(model, file) is not None and not store.has_blob(blob, file.size_bytes)
    }


def _wishes(store: Store, packed: Manifest, model: Manifest | None, accepts: Accepts) -> list[Wish]:
    """Which layers to unpack, and what of them."""
    lacking = _lacking(store, model) if model is not None else set()
    wishes: dict[BlobId, Wish] = {}
    for archive in packed.archives:
        listing = store.listing(archive)
        if listing is None:
            wishes.setdefault(archive.layer.blob, wish_all(archive, accepts))
            continue
        names = listing.carriers(lacking)
        if names:
            lacking.difference_update(entry.blob for entry in listing.entries if entry.blob)
            wishes.setdefault(archive.layer.blob, wish_names(archive, listing, names))
    return list(wishes.values())


def _drop(store: Store, packed: Manifest) -> None:
    """Forget the packed model, unless somebody else is still unpacking it."""
    if store.layout.manifest(packed.model_id).exists():
        with suppress(Leased):
            store.remove_model(packed.model_id)
