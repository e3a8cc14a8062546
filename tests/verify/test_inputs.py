import numpy as np

from edgekd.verify.inputs import FEW, cases

SAMPLES = np.random.default_rng(0).normal(size=(40, 2, 4, 5)).astype(np.float32)


def named(found):
    return {case.name: case for case in found}


def test_every_sample_is_fed_in_the_largest_batch_and_a_few_in_each_other():
    found = cases(SAMPLES, [1, 3, 7, 16])
    assert [case.name for case in found][:4] == ["batch 16", "batch 1", "batch 3", "batch 7"]
    assert np.array_equal(found[0].x, SAMPLES)
    assert all(np.array_equal(case.x, SAMPLES[:FEW]) for case in found[1:4])
    assert [case.batch for case in found[:4]] == [16, 1, 3, 7]
    assert all(case.real for case in found[:4])


def test_the_largest_batch_is_whole_where_there_are_fewer_samples():
    case = cases(SAMPLES[:3], [8])[0]
    assert case.x.shape == (8, 2, 4, 5)
    assert np.array_equal(case.x[3:6], SAMPLES[:3])


def test_extreme_inputs_are_at_and_beyond_the_ends_of_the_samples():
    found = named(cases(SAMPLES, [1]))
    assert not found["zeros"].x.any()
    assert (found["saturated low"].x == SAMPLES.min()).all()
    assert (found["saturated high"].x == SAMPLES.max()).all()
    assert set(np.unique(found["saturated both"].x)) == {SAMPLES.min(), SAMPLES.max()}
    tiny = found["denormals"].x
    assert (tiny > 0).all()
    assert (tiny < np.finfo(np.float32).tiny).all()
    assert (found["large constant"].x > 1000 * SAMPLES.max()).all()
    assert not any(case.real for name, case in found.items() if not name.startswith("batch"))
    assert all(case.x.dtype == np.float32 for case in found.values())


def test_sizes_that_a_file_leaves_free_are_tried_at_another_size():
    found = named(cases(SAMPLES, [1], free=[1, 2]))
    assert np.array_equal(found["size 2 × 7 × 5"].x[:, :, 4:], SAMPLES[:2, :, :3])
    assert found["size 2 × 4 × 8"].x.shape == (2, 2, 4, 8)
