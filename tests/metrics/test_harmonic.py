import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsseg.metrics import harmonic_mean

# Far below any share of pixels or segments the product would underflow to 0.
shares = st.just(0.0) | st.floats(1e-100, 1)


@given(shares, shares)
def test_lies_between_its_arguments_and_is_symmetric(seen, unseen):
    mean = harmonic_mean(seen, unseen)
    assert min(seen, unseen) * (1 - 1e-12) <= mean <= max(seen, unseen) * (1 + 1e-12)
    assert mean == harmonic_mean(unseen, seen)


def test_values():
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(0.0, 0.7) == 0.0
    assert harmonic_mean(0.377, 0.144) == pytest.approx(1 / ((1 / 0.377 + 1 / 0.144) / 2), rel=1e-14)
    assert math.isnan(harmonic_mean(math.nan, 0.0))


@pytest.mark.parametrize("arguments", [(-0.1, 0.5), (0.5, -0.1)])
def test_negative_values_are_refused(arguments):
    with pytest.raises(ValueError, match="0 or more"):
        harmonic_mean(*arguments)
