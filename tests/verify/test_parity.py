import numpy as np
import pytest

from edgekd.errors import StageError
from edgekd.verify.parity import compare, worst

REFERENCE = np.array([[1.0, -2.0, 0.5], [0.0, 4.0, 1.0]], dtype=np.float32)


def test_equal_logits_have_no_error():
    errors = compare(REFERENCE, REFERENCE.copy(), where="x")
    assert (errors.max_abs, errors.max_relative, errors.agreement) == (0, 0, 1)
    assert errors.cosine == pytest.approx(1)


def test_the_relative_error_is_a_share_of_the_largest_logit():
    result = REFERENCE.copy()
    result[0, 0] += 0.5
    errors = compare(REFERENCE, result, where="x")
    assert errors.max_abs == pytest.approx(0.5)
    assert errors.max_relative == pytest.approx(0.5 / 4)


def test_agreement_counts_equal_top_answers_and_cosine_is_the_worst():
    result = REFERENCE.copy()
    result[1] = -result[1]
    errors = compare(REFERENCE, result, where="x")
    assert errors.agreement == 0.5
    assert errors.cosine == pytest.approx(-1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_result_that_is_not_finite_is_an_error_that_names_the_file(value):
    result = REFERENCE.copy()
    result[0, 1] = value
    with pytest.raises(StageError, match=r"student\.onnx.*not finite"):
        compare(REFERENCE, result, where="student.onnx")


def test_another_shape_is_an_error():
    with pytest.raises(StageError, match="shape"):
        compare(REFERENCE, REFERENCE[:, :2], where="x")


def test_logits_of_zero_do_not_divide_by_zero():
    zeros = np.zeros((2, 3), dtype=np.float32)
    errors = compare(zeros, zeros, where="x")
    assert (errors.max_relative, errors.cosine) == (0, 1)


def test_the_worst_of_several_comparisons_is_the_worst_in_each_figure():
    reference = np.array([[1.0, 2.0, 4.0]])
    near = compare(reference, reference + 1e-6, where="a")
    equal = compare(reference, reference.copy(), where="b")
    far = compare(reference, reference[:, ::-1].copy(), where="c")
    assert equal.snr is None
    found = worst(equal, near, far)
    assert found == far
    assert worst(equal, near).snr == near.snr == pytest.approx(10 * np.log10(21 / 3e-12))
