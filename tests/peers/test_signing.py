"""Signatures of requests and answers: who has the token, and when, and for what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import Forbidden, NoCredentials
from modelcache.peers.signing import (
    GOOD_FOR_S,
    SKEW_S,
    Scope,
    answer_to,
    digest_of,
    sign,
    sign_answer,
    verify,
    verify_answer,
)

ONE, TWO, THREE = (name.encode() * 8 for name in ("one", "two", "three"))
SCOPE = Scope("POST", "/v1/announce", "node-1", "node-2", digest_of(b"body"))
NOW_S = 1_800_000_000.0


def test_whoever_has_the_token_is_admitted_for_as_long_as_it_says():
    header = sign(SCOPE, [ONE], NOW_S)
    for age_s in (-SKEW_S, 0, GOOD_FOR_S, GOOD_FOR_S + SKEW_S):
        assert verify(header, SCOPE, [ONE], NOW_S + age_s).token == ONE


@pytest.mark.parametrize(
    ("age_s", "said"),
    [(GOOD_FOR_S + SKEW_S + 1, "361 s ago"), (-SKEW_S - 1, "61 s in the future")],
)
def test_old_and_early_signatures_say_what_is_wrong_with_the_clocks(age_s: float, said: str):
    with pytest.raises(Forbidden, match=rf"{said}.*set the clocks"):
        verify(sign(SCOPE, [ONE], NOW_S), SCOPE, [ONE], NOW_S + age_s)


@pytest.mark.parametrize(
    "other",
    [
        replace(SCOPE, method="GET"),
        replace(SCOPE, path="/v1/resolve"),
        replace(SCOPE, node="node-3"),
        replace(SCOPE, to="node-1"),
        replace(SCOPE, to=""),
        replace(SCOPE, digest=digest_of(b"another")),
        replace(SCOPE, digest=digest_of(b"")),
    ],
)
def test_a_signature_is_good_for_nothing_else(other: Scope):
    with pytest.raises(Forbidden, match="another token"):
        verify(sign(SCOPE, [ONE], NOW_S), other, [ONE], NOW_S)


def test_a_signature_of_another_time_does_not_hold():
    header = sign(SCOPE, [ONE], NOW_S).replace(str(int(NOW_S)), str(int(NOW_S) + 1))
    with pytest.raises(Forbidden):
        verify(header, SCOPE, [ONE], NOW_S)


def test_without_a_signature_credentials_are_asked_for():
    with pytest.raises(NoCredentials, match=r"peers\.token_file"):
        verify(None, SCOPE, [ONE], NOW_S)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "v2",
        "v3 1 " + "0" * 64,
        "v2 x " + "0" * 64,
        "v2 1 " + "0" * 63,
        "v2 1 " + "Z" * 64,
        "v2 1 " + ",".join(["0" * 64] * 5),
        "v2 " + "9" * 13 + " " + "0" * 64,
    ],
)
def test_malformed_signatures_are_refused(header: str):
    with pytest.raises(Forbidden, match="malformed"):
        verify(header, SCOPE, [ONE], NOW_S)


def test_while_the_token_is_changed_nodes_before_and_after_understand_each_other():
    before, between, after = [ONE], [TWO, ONE], [TWO]
    for asks in (before, between, after):
        for answers in (before, between, after):
            header = sign(SCOPE, asks, NOW_S)
            if {*asks} & {*answers}:
                signed = verify(header, SCOPE, answers, NOW_S)
                answer = sign_answer(signed, "said")
                assert verify_answer(answer, SCOPE, "said", asks, NOW_S)
            else:
                with pytest.raises(Forbidden):
                    verify(header, SCOPE, answers, NOW_S)


def test_an_answer_is_good_for_its_request_and_what_it_says_only():
    signed = verify(sign(SCOPE, [ONE], NOW_S), SCOPE, [ONE], NOW_S)
    said = answer_to(206, content_range="bytes 0-9/100", hashes="ab")
    header = sign_answer(signed, said)
    assert verify_answer(header, SCOPE, said, [ONE], NOW_S)
    others = [
        answer_to(200, content_range="bytes 0-9/100", hashes="ab"),
        answer_to(206, content_range="bytes 0-9/101", hashes="ab"),
        answer_to(206, content_range="bytes 0-9/100", hashes="ac"),
        answer_to(206, content_range="bytes 0-9/100"),
        answer_to(206, body=b"x"),
    ]
    for other in others:
        assert not verify_answer(header, SCOPE, other, [ONE], NOW_S)
    assert not verify_answer(header, replace(SCOPE, path="/x"), said, [ONE], NOW_S)
    assert not verify_answer(header, SCOPE, said, [TWO], NOW_S)
    assert not verify_answer(header, SCOPE, said, [ONE], NOW_S + GOOD_FOR_S + SKEW_S + 1)
    assert not verify_answer(None, SCOPE, said, [ONE], NOW_S)
    assert not verify_answer("v2 1", SCOPE, said, [ONE], NOW_S)


def test_bodies_of_messages_are_covered():
    assert answer_to(200, body=b"a") != answer_to(200, body=b"b")
    assert digest_of(b"a") != digest_of(b"b")


def test_what_asks_without_the_token_cannot_answer_with_what_it_was_sent():
    """An impostor at a peer's address gets signed requests; the answer is not in them."""
    header = sign(SCOPE, [ONE], NOW_S)
    signature = header.split()[2]
    said = answer_to(200, body=b"")
    for token in (b"", signature.encode(), bytes.fromhex(signature)):
        signed = verify(sign(SCOPE, [token], NOW_S), SCOPE, [token], NOW_S)
        forged = sign_answer(replace(signed, signature=signature), said)
        assert not verify_answer(forged, SCOPE, said, [ONE], NOW_S)


@given(st.text(alphabet=st.characters(codec="latin-1")))
def test_any_header_is_judged_without_trouble(header: str):
    with pytest.raises(Forbidden):
        verify(header, SCOPE, [ONE, TWO], NOW_S)
    assert not verify_answer(header, SCOPE, "", [THREE], NOW_S)
