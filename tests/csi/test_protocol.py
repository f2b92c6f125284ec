"""The protocol as it is written down here, against the published one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from csi.protocol import csi_pb2

PUBLISHED = "github.com/container-storage-interface/spec@v1.13.0"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The published file, from its Go module."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not here, and the published protocol is a Go module's")
    done = subprocess.run(
        [go, "mod", "download", "-json", PUBLISHED], capture_output=True, check=False, timeout=60
    )
    if done.returncode:
        pytest.skip("the published protocol cannot be had here")
    folder = json.loads(done.stdout)["Dir"]
    out = tmp_path_factory.mktemp("published") / "csi.set"
    well_known = Path(protoc.__file__).parent / "_proto"
    assert not protoc.main(
        ["protoc", f"-I{folder}", f"-I{well_known}", f"--descriptor_set_out={out}", "csi.proto"]
    )
    return FileDescriptorSet.FromString(out.read_bytes()).file[0]


def messages(found: list[DescriptorProto], prefix: str = "") -> dict[str, DescriptorProto]:
    known = {}
    for message in found:
        known[prefix + message.name] = message
        known |= messages(list(message.nested_type), f"{prefix}{message.name}.")
    return known


def test_every_message_is_the_published_one_or_a_part_of_it(published: FileDescriptorProto):
    ours = FileDescriptorProto()
    csi_pb2.DESCRIPTOR.CopyToProto(ours)
    theirs = messages(list(published.message_type))
    for name, message in messages(list(ours.message_type)).items():
        fields = {field.name: field for field in theirs[name].field}
        for field in message.field:
            same = fields[field.name]
            assert (field.number, field.type, field.label, field.type_name) == (
                same.number,
                same.type,
                same.label,
                same.type_name,
            ), f"{name}.{field.name}"
        for enum in message.enum_type:
            (same_enum,) = (each for each in theirs[name].enum_type if each.name == enum.name)
            values = {value.name: value.number for value in same_enum.value}
            assert {value.name: value.number for value in enum.value}.items() <= values.items()


def test_every_method_is_a_published_one(published: FileDescriptorProto):
    ours = FileDescriptorProto()
    csi_pb2.DESCRIPTOR.CopyToProto(ours)
    theirs = {service.name: service for service in published.service}
    assert ours.package == published.package
    for service in ours.service:
        methods = {
            each.name: (each.input_type, each.output_type) for each in theirs[service.name].method
        }
        for method in service.method:
            assert methods[method.name] == (method.input_type, method.output_type)
