import numpy as np
import pytest

from evaluation.statistics import mean, ratio


def test_interval_of_independent_numbers_is_that_of_theory():
    values = np.random.default_rng(1).normal(3, 2, 400)
    estimate = mean(values.tolist(), [str(i) for i in range(400)])
    error = values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert estimate.videos == 400


def test_interval_of_two_scenes_is_all_between_them():
    # Both, either twice: each with chance 1/4 and more, so that 2.5 % cut off nothing.
    estimate = mean([0.0, 1.0], ["a", "b"])
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0, 1)


def test_copies_of_a_scene_do_not_narrow_the_interval():
    values = np.random.default_rng(2).normal(0, 1, 50).tolist()
    scenes = [str(i) for i in range(50)]
    once, often = mean(values, scenes), mean(values * 8, scenes * 8)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert often.videos == 400


def test_the_same_numbers_give_the_same_interval():
    values, scenes = [1.0, 2.0, 5.0, 3.0], ["a", "b", "c", "d"]
    assert mean(values, scenes) == mean(values, scenes)


def test_ratio_of_sums():
    estimate = ratio([2.0, 8.0], [1.0, 4.0], ["a", "b"])
    assert (estimate.value, estimate.low, estimate.high) == (2, 2, 2)


def test_what_cannot_be_told():
    assert mean([], []) is None
    assert ratio([1.0], [0.0], ["a"]) is None
    assert mean([1.0, 3.0], ["a", "a"]).low is None
