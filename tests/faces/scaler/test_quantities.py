"""Numbers are written as the API server reads them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightkube.utils.quantity import parse_quantity

from modelcache.errors import UsageError
from modelcache.faces.scaler.quantities import quantity


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (0, "0"), (7.5, "7500m"), (0.1, "100m"), (0.0001, "1m"), (1e12, "1000000000000")],
)
def test_what_is_written(value: float, text: str):
    assert quantity(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_cannot_be_written(value: float):
    with pytest.raises(UsageError):
        quantity(value)


@given(st.floats(0, 1e9))
def test_what_is_read_back_is_the_value_or_a_thousandth_more(value: float):
    read = parse_quantity(quantity(value))
    assert read is not None
    assert Decimal("-0.00001") <= read - Decimal(value) <= Decimal("0.001")
