"""Label selectors mean what Kubernetes says they mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import UsageError
from modelcache.faces.kubernetes.selectors import SELECTOR_BYTES_MAX, matches, parse_selector

LABELS = {"model": "llama", "tier": "warm", "example.com/a_b": ""}


@pytest.mark.parametrize(
    ("selector", "holds"),
    [
        ("", True),
        (" ", True),
        ("model=llama", True),
        ("model==llama,tier=warm", True),
        (" model = llama , tier != cold ", True),
        ("model=qwen", False),
        ("model!=llama", False),
        ("other!=llama", True),
        ("model in (qwen, llama)", True),
        ("model in (qwen)", False),
        ("model notin (qwen,mistral)", True),
        ("other notin (qwen)", True),
        ("model notin (llama)", False),
        ("tier", True),
        ("!tier", False),
        ("!other", True),
        ("other", False),
        ("example.com/a_b=", True),
        ("example.com/a_b in ()", True),
        ("model=llama,!tier", False),
    ],
)
def test_what_a_selector_selects(selector: str, holds: bool):
    assert matches(parse_selector(selector), LABELS) is holds


@pytest.mark.parametrize(
    "selector",
    [
        "=",
        ",",
        "a=b,",
        "a=b c",
        "a in b",
        "a in (b",
        "a in b)",
        "a in (b))",
        "a in (b c)",
        "a>1",
        "-a=b",
        "a=-b",
        "a/b/c=d",
        "/a=b",
        "a==b==c",
        "!a=b",
        "ä=b",
        "a=b\n\n,",
        "a" * (SELECTOR_BYTES_MAX + 1),
    ],
)
def test_what_is_none_is_refused(selector: str):
    with pytest.raises(UsageError):
        parse_selector(selector)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str):
    try:
        found = parse_selector(text)
    except UsageError:
        return
    assert matches(found, LABELS) in {True, False}


@given(st.dictionaries(st.from_regex(r"\A[a-z]{1,5}\Z"), st.from_regex(r"\A[a-z0-9]{1,5}\Z")))
def test_labels_written_as_a_selector_select_themselves(labels: dict[str, str]):
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    assert matches(parse_selector(selector), labels)
