"""Short decimals of float32."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from camserve.protocol.float32 import shorten

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays(np.float32, array_shapes(max_dims=2), elements=FINITE | st.floats(0, 1, width=32)))
def test_shortest_is_numpys_own(values: np.ndarray) -> None:
    """Every value prints as NumPy prints that float32, which is the shortest decimal that reads back as it."""
    expected = np.array([float(str(value)) for value in values.ravel()]).reshape(values.shape).tolist()
    assert json.dumps(shorten(values)) == json.dumps(expected)


def test_unit_interval_at_random() -> None:
    """100,000 values in [0, 1], where the arithmetic does the work, come out as NumPy prints them one by one."""
    values = (np.random.default_rng(0).random(100_000) ** 3).astype(np.float32)
    assert shorten(values) == [float(str(value)) for value in values]


def test_shape_is_kept() -> None:
    """Rows stay rows, and 0, 1 and 0.1 are written as people write them."""
    assert json.dumps(shorten(np.array([[0, 1], [0.1, 1e-20]], dtype=np.float32))) == "[[0.0, 1.0], [0.1, 1e-20]]"
