"""KEDA's protocol as it is written down here, against the published one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from modelcache.faces.scaler.protocol import externalscaler_pb2

PUBLISHED = "github.com/kedacore/keda/v2@v2.21.0"
PLACE = "pkg/scalers/externalscaler"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The published file, from KEDA's Go module."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not here, and the published protocol is a Go module's")
    command = [go, "mod", "download", "-json", PUBLISHED]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=45)
    except subprocess.TimeoutExpired:
        pytest.skip("the published protocol does not come")
    if done.returncode:
        pytest.skip("the published protocol cannot be had here")
    folder = Path(json.loads(done.stdout)["Dir"]) / PLACE
    out = tmp_path_factory.mktemp("published") / "scaler.set"
    assert not protoc.main(
        ["protoc", f"-I{folder}", f"--descriptor_set_out={out}", "externalscaler.proto"]
    )
    return FileDescriptorSet.FromString(out.read_bytes()).file[0]


def test_services_and_messages_are_the_published_ones(published: FileDescriptorProto):
    ours = FileDescriptorProto()
    externalscaler_pb2.DESCRIPTOR.CopyToProto(ours)
    assert ours.package == published.package
    for service, theirs in zip(ours.service, published.service, strict=True):
        assert service.name == theirs.name
        assert {_method(each) for each in service.method} == {
            _method(each) for each in theirs.method
        }
    found = {message.name: message for message in published.message_type}
    assert {message.name for message in ours.message_type} == set(found)
    for message in ours.message_type:
        fields = {(f.name, f.number, f.type, f.label, f.type_name) for f in message.field}
        theirs_of = found[message.name].field
        assert fields == {(f.name, f.number, f.type, f.label, f.type_name) for f in theirs_of}


def _method(each: object) -> tuple[object, ...]:
    return tuple(
        getattr(each, name)
        for name in ("name", "input_type", "output_type", "client_streaming", "server_streaming")
    )
