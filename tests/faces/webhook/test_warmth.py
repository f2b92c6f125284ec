"""What is learnt from nodes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import wanted_id
from modelcache.faces.webhook.warmth import IDS_MAX, Held, Index, NothingKnown, models_in
from tests.faces.webhook.support import LLAMA, QWEN

LLAMA_REF, QWEN_REF = parse_ref(LLAMA), parse_ref(QWEN)


def status(*models: tuple[str, str, float]) -> dict[str, Any]:
    return {"models": [{"ref": r, "modelId": i, "percent": p} for r, i, p in models]}


def index(**nodes: dict[str, Any]) -> Index:
    made = Index()
    for node, found in nodes.items():
        made.put(node, models_in(found))
    return made


def test_ids_come_most_common_first():
    made = index(
        a=status((LLAMA, "old", 100)),
        b=status((LLAMA, "new", 100)),
        c=status((LLAMA, "new", 10), (QWEN, "q", 5)),
    )
    assert made.model_ids(LLAMA_REF) == ["new", "old"]
    assert made.model_ids(QWEN_REF) == ["q"]
    assert made.model_ids(parse_ref("s3://bucket/other")) == []


def test_ids_are_bounded():
    made = index(a=status(*((LLAMA, f"id-{n}", 1) for n in range(50))))
    assert len(made.model_ids(LLAMA_REF)) == IDS_MAX


def test_refs_that_hold_a_secret_are_known_by_their_id():
    ref = parse_ref("https://host/m?signature=SECRET")
    shown = {"ref": ref.redacted(), "wantedId": wanted_id(ref), "modelId": "m", "percent": 100}
    made = index(a={"models": [shown]})
    assert made.model_ids(ref) == ["m"]
    assert made.together_somewhere([ref])


def test_a_ref_written_otherwise_is_the_same():
    made = index(a=status(("S3://bucket/llama", "m", 100)))
    assert made.model_ids(LLAMA_REF) == ["m"]


def test_together_means_on_one_node_and_complete():
    made = index(a=status((LLAMA, "l", 100), (QWEN, "q", 99)), b=status((QWEN, "q", 100)))
    assert made.together_somewhere([LLAMA_REF])
    assert made.together_somewhere([QWEN_REF])
    assert not made.together_somewhere([LLAMA_REF, QWEN_REF])
    made.put("b", models_in(status((LLAMA, "l", 100), (QWEN, "q", 100))))
    assert made.together_somewhere([LLAMA_REF, QWEN_REF])
    assert not made.together_somewhere([])


def test_a_node_that_goes_takes_what_it_had():
    made = index(a=status((LLAMA, "l", 100)))
    made.put("a", ())
    assert made.model_ids(LLAMA_REF) == []
    assert not made.together_somewhere([LLAMA_REF])


def test_entries_that_are_wrong_are_left_out():
    good = {"ref": LLAMA, "modelId": "l", "percent": 100}
    wrong = [None, 3, {}, {"ref": "x", "modelId": "l"}, {**good, "modelId": ""}]
    wrong += [{**good, "percent": "many"}, {**good, "modelId": None}]
    assert list(models_in({"models": [*wrong, good]})) == [Held(wanted_id(LLAMA_REF), "l", True)]
    assert list(models_in({"models": "x"})) == list(models_in(None)) == []


def test_nothing_is_known_without_a_cluster():
    assert NothingKnown().model_ids(LLAMA_REF) == []
    assert not NothingKnown().together_somewhere([LLAMA_REF])


HELD = st.builds(Held, st.sampled_from("xyz"), st.sampled_from("ab"), st.booleans())


@given(st.lists(st.tuples(st.sampled_from("123"), st.lists(HELD, max_size=4)), max_size=12))
def test_an_index_is_what_the_last_word_of_each_node_says(changes: list[tuple[str, list[Held]]]):
    made, last = Index(), Index()
    for node, models in changes:
        made.put(node, models)
    for node, models in dict(changes).items():
        last.put(node, models)
    assert made._ids == last._ids
    assert made._whole == last._whole
    assert made._nodes == last._nodes
    for node, _ in changes:
        made.put(node, ())
    assert (made._ids, made._whole, made._nodes) == ({}, {}, {})
