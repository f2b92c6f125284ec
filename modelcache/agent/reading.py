"""Whether a model can be read at its origin, found out by reading a byte of it."""

from __future__ import annotations

from modelcache.agent.pulling import first_of, settings_at
from modelcache.config import Settings
from modelcache.domain.manifests import File, ModelId
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.domain.refs import Ref
from modelcache.planner import SourceId
from modelcache.sources.opening import open_source
from modelcache.sources.source import Source
from modelcache.transfer.connections import IdleConnections
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.report import SourceReport, WorkerTimes
from modelcache.transfer.requests import Requests


def readable(settings: Settings, ref: Ref) -> ModelId:
    """Resolve a ref and read a byte of it, with whatever credentials this process has.

    Listing is not reading: there are origins that let people do the one and not the other. Raises
    what the origin says.
    """

    def ask(place: Ref, _: list[str]) -> ModelId:
        here = settings_at(place, ref, settings)
        source = open_source(place.origin(), here)
        manifest = source.resolve(place)
        files = [file for file in manifest.files if file.size_bytes]
        if files:
            _read_one(here, source, min(files, key=lambda file: file.size_bytes))
        return manifest.model_id

    return first_of(settings, ref, ask)


def _read_one(settings: Settings, source: Source, file: File) -> None:
    name = SourceId("origin")
    grid = ChunkGrid(file.size_bytes, settings.store.chunk_bytes)
    job = BlobJob(file, grid, source, name, small=True)
    idle = IdleConnections(1)
    requests = Requests(settings.transfer, idle, WorkerTimes())
    try:
        exchange = requests.send(job, name, ByteRange(0, 1), SourceReport(), fresh=False)
        requests.receive(exchange)
    finally:
        requests.drop_open()
        idle.close()
