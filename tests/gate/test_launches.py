"""The latency of a launch: blocks in pairs, so that what slows both down cancels."""

import math

import numpy as np
import pytest

from edgekd.gate.launches import paired
from edgekd.profile.statistics import block_medians


def test_blocks_are_told_apart_by_their_round():
    seconds, rounds = np.array([1.0, 2, 9, 4, 5]), np.array([0, 0, 0, 2, 2])
    assert block_medians(seconds, rounds) == {0: 2.0, 2: 4.5}


def test_only_rounds_that_both_were_measured_in_are_compared():
    assert paired({0: 2.0, 1: 8.0, 2: 2.0}, {0: 1.0, 2: 1.0, 7: 100.0}) == math.log(2)


def test_a_neighbour_that_comes_and_goes_slows_both_of_a_pair_and_cancels():
    """Half of the time everything takes twice as long, and then a block holds half as many calls."""
    random = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        calls = {"candidate": ([], []), "baseline": ([], [])}
        for turn, slow in enumerate(random.random(15) < 0.5):
            for role, cost in (("candidate", 1.05), ("baseline", 1.0)):
                count = 15 if slow else 30
                times = cost * (1 + slow) * (1 + 0.01 * random.random(count))
                calls[role][0].extend(times)
                calls[role][1].extend([turn] * count)
        candidate, baseline = (block_medians(*map(np.array, pair)) for pair in calls.values())
        errors.append(paired(candidate, baseline) - math.log(1.05))
    assert np.abs(errors).max() < 0.005
    assert np.mean(errors) == pytest.approx(0, abs=0.001)
