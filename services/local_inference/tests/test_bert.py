"""The arithmetic against independent references."""

import math

import numpy as np

from local_inference.bert import erf, gelu, softmax


def test_erf_agrees_with_the_c_library() -> None:
    x = np.linspace(-6, 6, 20_001, dtype=np.float32)
    expected = np.array([math.erf(value) for value in x])
    assert np.abs(erf(x) - expected).max() < 6e-7


def test_gelu_is_x_times_the_normal_distribution() -> None:
    x = np.linspace(-5, 5, 1001, dtype=np.float32)
    expected = [value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in x.astype("f8")]
    np.testing.assert_allclose(gelu(x), expected, atol=2e-6)


def test_softmax_sums_to_one_even_of_large_numbers() -> None:
    rows = softmax(np.array([[1000.0, 1000.0], [-1e9, 3.0]], dtype=np.float32))
    np.testing.assert_allclose(rows, [[0.5, 0.5], [0.0, 1.0]], atol=1e-6)
