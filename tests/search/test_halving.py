import pytest

from edgekd.search.halving import promoted, rung_epochs


@pytest.mark.parametrize(
    ("last", "rungs", "keep", "marks"),
    [(120, 3, 3.0, (13, 40, 120)), (9, 3, 3.0, (1, 3, 9)), (2, 3, 3.0, (1, 2)), (7, 1, 3.0, (7,))],
)
def test_rungs_grow_up_to_the_last_epoch(last, rungs, keep, marks):
    assert rung_epochs(last, rungs, keep) == marks


def test_the_best_third_goes_on_and_ties_go_to_the_cheaper_then_the_first():
    scores = {
        "a": (0.5, -2.0),
        "b": (0.9, -3.0),
        "c": (0.9, -1.0),
        "d": (0.1, 0.0),
        "e": (0.9, -1.0),
    }
    assert promoted(scores, 2.5) == ["c", "e"]


def test_somebody_always_goes_on():
    assert promoted({"a": (0.0,)}, 3.0) == ["a"]
