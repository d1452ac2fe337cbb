"""Means with bootstrap intervals, scenes being what was sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

RESAMPLES = 10_000
_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A mean, or a ratio of means, with its 95 % interval."""

    value: float
    low: float | None
    """None where a single scene tells nothing of others."""
    high: float | None
    videos: int
    """Or pairs of them."""


def mean(values: Sequence[float], scenes: Sequence[str]) -> Estimate | None:
    """Mean of numbers; None without any.

    Args:
        values: one a video, or a difference a pair.
        scenes: what each was made of; resampled as a whole, since videos of one scene go together.
    """
    return ratio(values, [1.0] * len(values), scenes)


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], scenes: Sequence[str]
) -> Estimate | None:
    """Sum of numerators over sum of denominators; None if that is not defined.

    The interval is the percentile bootstrap over scenes (Efron & Tibshirani, "An Introduction to
    the Bootstrap", chapter 13), with the same draws every time.

    Args:
        numerators, denominators: one each a video; denominators are not negative.
        scenes: see `mean`.
    """
    if not sum(denominators):
        return None
    _, of = np.unique(np.asarray(scenes), return_inverse=True)
    tops = np.bincount(of, weights=numerators)
    bottoms = np.bincount(of, weights=denominators)
    low = high = None
    if len(tops) > 1:
        times = _times_drawn(len(tops))
        drawn_tops, drawn_bottoms = times @ tops, times @ bottoms
        defined = drawn_bottoms > 0
        drawn = drawn_tops[defined] / drawn_bottoms[defined]
        low, high = map(float, np.percentile(drawn, (2.5, 97.5)))
    return Estimate(float(tops.sum() / bottoms.sum()), low, high, len(numerators))


@cache
def _times_drawn(count: int) -> np.ndarray:
    """How often each of `count` scenes is in each resample, shape [RESAMPLES, count]."""
    shares = np.full(count, 1 / count)
    return np.random.default_rng(_SEED).multinomial(count, shares, RESAMPLES).astype(float)
