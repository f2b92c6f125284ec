"""Mending files that came out of layers: the layer is fetched again, and only they are unpacked.

A member has no address of its own, and its bad chunks no range at the origin.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelcache.agent.fetching import Fetching
from modelcache.agent.unpacking.layers import Layers, Wish, only_unpacker
from modelcache.domain.layers import layer_of, name_in_layer
from modelcache.domain.manifests import BlobId, File, Manifest
from modelcache.errors import CorruptData
from modelcache.sources.source import Source
from modelcache.store import Store, staging


def mend_members(
    fetching: Fetching, source: Source, model: Manifest, damaged: Sequence[File]
) -> None:
    """Replace the blobs of these files, which layers of `model` hold. The model has a lease.

    Raises what a fetch raises; what is there stays until it is replaced.
    """
    wishes = _wishes(model, damaged)
    archives = [wish.archive for wish in wishes]
    with only_unpacker(fetching, archives):
        with Layers(fetching, source, model.model_id).unpack(wishes) as found:
            blobs = {file.blob for file in damaged}
            staged = [one for item in found for one in item.staged if one.blob in blobs]
            staging.publish(fetching.store.layout, staged, replace=blobs)
        for archive in archives:
            _drop_partial(fetching.store, archive.layer.blob)
    left = blobs - {one.blob for one in staged}
    if left:
        names = sorted(file.path for file in damaged if file.blob in left)
        raise CorruptData(f"{names[0]} did not come out of its layer; pull the model again")


def _wishes(model: Manifest, damaged: Sequence[File]) -> list[Wish]:
    found: dict[BlobId, Wish] = {}
    names: dict[BlobId, set[str]] = {}
    for file in damaged:
        archive = layer_of(model, file)
        assert archive is not None  # noqa: S101 - that is what the caller has chosen them by
        wanted = names.setdefault(archive.layer.blob, set())
        wanted.add(name_in_layer(file))
        before = found.get(archive.layer.blob)
        size = file.size_bytes + (before.size_bytes if before else 0)
        found[archive.layer.blob] = Wish(archive, wanted.__contains__, size)
    return list(found.values())


def _drop_partial(store: Store, layer: BlobId) -> None:
    """Its bytes were needed once, and no manifest lists it as a blob."""
    with store.mutex():
        if layer not in store.referenced_blobs():
            store.drop_partial(layer)
