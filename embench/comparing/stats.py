"""Statistics of paired measurements: arrays in, intervals out.

Pairs share a seed, hence data and start; what is left to vary is the variant and the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from embench.types import FloatArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the confidence interval around it, all in one unit."""

    estimate: float
    low: float
    high: float

    def map(self, function: np.ufunc) -> Interval:
        """The interval after an increasing function."""
        # An interval in logs may end where exp has no float left; inf is then the right end.
        with np.errstate(over="ignore"):
            return Interval(
                *(float(function(value)) for value in (self.estimate, self.low, self.high))
            )


def mean_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, overlap: float = 0.0
) -> Interval:
    """Mean of values with Student's t interval.

    mean ± t(n - 1, confidence) * stddev * sqrt(1/n + overlap), where stddev has n - 1 in its
    denominator. Splits of one table share most of their samples: without ``overlap`` an interval
    over them would be too narrow, and the more splits, the more so.

    Args:
        values: Shape (n,), n >= 1, any unit u.
        confidence: Probability that the interval covers the true mean, in (0, 1).
        overlap: 0 for independent values; held-out over fitted samples, n_test / n_train, for
            values from random splits of one table.

    Returns:
        An interval in u: scaling the values by c > 0 scales it by c. One value says nothing of
        the spread and gives (-inf, inf); equal values give an interval of width zero.

    Raises:
        ValueError: There is no value, or one is not finite.

    Notes:
        Normality of the mean is assumed, not checked: with few and skewed values the cover is
        below its nominal level.

    Source:
        Student (1908), The probable error of a mean, Biometrika 6; for splits of one table Nadeau
        and Bengio (2003), Inference for the generalization error, Machine Learning 52, eq. 9.

    Example:
        >>> mean_interval([1.0, 2.0, 3.0])
        Interval(estimate=2.0, low=-0.484..., high=4.484...)
    """
    from scipy.stats import t

    values = _finite(values)
    estimate = float(values.mean())
    if len(values) == 1:
        return Interval(estimate, -np.inf, np.inf)
    error = float(values.std(ddof=1)) * float(np.sqrt(1 / len(values) + overlap))
    half = float(t.ppf((1 + confidence) / 2, df=len(values) - 1)) * error
    return Interval(estimate, estimate - half, estimate + half)


def geometric_mean_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, overlap: float = 0.0
) -> Interval:
    """Geometric mean of positive values with Student's t interval on their logs.

    Args:
        values: Shape (n,), n >= 1, all > 0, any unit u.
        confidence, overlap: As in `mean_interval`.

    Returns:
        An interval in u, symmetric on a log scale. One value gives (0, inf).

    Raises:
        ValueError: There is no value, or one is not finite or not positive.

    Source:
        Fleming and Wallace (1986), How not to lie with statistics, CACM 29: ratios are averaged
        by their geometric mean, which does not depend on what was chosen as the baseline.

    Example:
        >>> geometric_mean_interval([0.5, 2.0]).estimate
        1.0
    """
    values = _finite(values)
    if np.any(values <= 0):
        raise ValueError(f"expected positive values, got {values.min():g}")
    return mean_interval(np.log(values), confidence, overlap).map(np.exp)


def paired_difference(
    baseline: ArrayLike,
    candidate: ArrayLike,
    confidence: float = CONFIDENCE,
    overlap: float = 0.0,
) -> Interval:
    """Mean of candidate - baseline over pairs.

    Args:
        baseline: Shape (n,), one value per pair, unit u.
        candidate: Shape (n,), in the same order, unit u.
        confidence, overlap: As in `mean_interval`.

    Returns:
        An interval in u; swapping the two mirrors it at zero.

    Raises:
        ValueError: The shapes differ, there is no pair, or a value is not finite.

    Example:
        >>> paired_difference([1.0, 2.0], [1.5, 2.5])
        Interval(estimate=0.5, low=0.5, high=0.5)
    """
    baseline, candidate = _pairs(baseline, candidate)
    return mean_interval(candidate - baseline, confidence, overlap)


def paired_ratio(
    baseline: ArrayLike,
    candidate: ArrayLike,
    confidence: float = CONFIDENCE,
    overlap: float = 0.0,
) -> Interval:
    """Geometric mean of candidate / baseline over pairs.

    Args:
        baseline: Shape (n,), one value > 0 per pair, unit u.
        candidate: Shape (n,), > 0, in the same order, unit u.
        confidence, overlap: As in `mean_interval`.

    Returns:
        A ratio without unit; swapping the two gives the reciprocal.

    Raises:
        ValueError: The shapes differ, there is no pair, or a value is not finite or not positive.

    Example:
        >>> paired_ratio([1.0, 10.0], [2.0, 20.0])
        Interval(estimate=2.0, low=2.0, high=2.0)
    """
    baseline, candidate = _pairs(baseline, candidate)
    for values in (baseline, candidate):
        if np.any(values <= 0):
            raise ValueError(f"a ratio needs positive values, got {values.min():g}")
    # Divided before the log: equal ratios then have equal logs, and an interval of width zero.
    return geometric_mean_interval(candidate / baseline, confidence, overlap)


def geometric_mean(values: ArrayLike) -> float:
    """Geometric mean of values > 0, shape (n,), in their unit.

    >>> round(geometric_mean([1.0, 100.0]), 9)
    10.0
    """
    return float(np.exp(np.log(_finite(values)).mean()))


def stddev(values: ArrayLike) -> float:
    """Standard deviation of values, shape (n,), n >= 2, in their unit, with n - 1 below.

    >>> stddev([1.0, 2.0, 3.0])
    1.0
    """
    return float(_finite(values).std(ddof=1))


def _pairs(baseline: ArrayLike, candidate: ArrayLike) -> tuple[FloatArray, FloatArray]:
    baseline, candidate = _finite(baseline), _finite(candidate)
    if baseline.shape != candidate.shape:
        raise ValueError(
            f"expected as many candidate as baseline values, got {len(candidate)} "
            f"and {len(baseline)}"
        )
    return baseline, candidate


def _finite(values: ArrayLike) -> FloatArray:
    """The values as float64, shape (n,), n >= 1."""
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"expected shape (n,) with n >= 1, got shape {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"expected finite values, got {array[~np.isfinite(array)][0]}")
    return array
