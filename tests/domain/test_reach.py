"""Which refs reach into the node."""

from __future__ import annotations

import pytest

from modelcache.domain.reach import is_link_local, reaches_node
from modelcache.domain.refs import parse_ref


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc",
        "http://127.0.0.1/x",
        "http://127.1.2.3:80/x",
        "http://[::1]/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://0.0.0.0/x",
        "http://2130706433/x",
        "http://127.1/x",
        "http://0x7f.1/x",
        "http://localhost/x",
        "http://LOCALHOST./x",
        "http://a.localhost/x",
        "https://metadata.google.internal/x",
        "http://169.254.169.254/x",
        "http://[fd00:ec2::254]/x",
        "http://[fe80::1]/x",
        "oci://localhost:5000/m:1",
        "oci://127.0.0.1:5000/m:1",
        "s3://bucket/m?endpoint=http://169.254.169.254",
    ],
)
def test_these_do(text: str):
    assert reaches_node(parse_ref(text))


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/m",
        "s3://localhost-models/m",
        "hf://org/localhost",
        "https://example.test/m/",
        "http://10.0.0.7:9000/m/",
        "http://192.168.1.1/m/",
        "oci://registry.example:5000/m:1",
        "s3://bucket/m?endpoint=http://minio.models.svc:9000",
    ],
)
def test_these_do_not(text: str):
    assert not reaches_node(parse_ref(text))


def test_link_local_addresses_are_known():
    found = ("169.254.169.254", "169.254.0.1", "fe80::1%eth0", "fd00:ec2::254")
    assert all(map(is_link_local, found))
    assert not any(map(is_link_local, ("127.0.0.1", "10.0.0.1", "::1", "name", "")))
