"""Inputs and targets drawn from a known law: densities p(Y|X) to be held against the truth."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field, FiniteFloat, PositiveInt, validate_call
from scipy.special import logsumexp

from embench.datasets.splitting import Seed, data_rng
from embench.types import Dataset, FloatArray

NODES_PER_NOISE = 200
"""Points of the quadrature over targets in [0, 1] per standard deviation of the noise. Five
deviations beyond the end of the curve, where nearly no sample lies, the density falls by a factor
of e within 14 points, of which Simpson's rule makes a relative error below 1e-6."""

ROWS = 200
"""Samples that the quadrature takes at a time, which bounds its memory."""


@validate_call
def inverse_sine(
    seed: Seed,
    *,
    n_samples: PositiveInt = 1000,
    noise: Annotated[FiniteFloat, Field(ge=0.01, le=1)] = 0.05,
    n_components: PositiveInt = 3,
    n_test: PositiveInt | None = None,
) -> Dataset:
    """The sine turned on its side: up to three targets y for one x, with known p(y|x).

    y is uniform on (0, 1) and x = y + 0.3 sin(2 pi y) + noise, so that

    p(y|x) = N(x; f(y), noise^2) / integral from 0 to 1 of N(x; f(y'), noise^2) dy'.

    A regression that predicts a mean goes between the branches. The noise is Gaussian, where
    Bishop's is uniform, so that the density is smooth and its integral is a matter of quadrature.
    No Gaussian mixture of three is this density: it ends sharply at 0 and 1.

    Args:
        seed: Any integer >= 0.
        n_samples: Samples to fit on.
        noise: Standard deviation of x about f(y).
        n_components: How many components models are to take that are not told.
        n_test: Samples to be judged on; None for as many as ``n_samples``.

    Returns:
        A `Dataset` with X and Y of shape (n_samples, 1), and the true log-likelihood of Y_test.

    Source:
        Bishop (1994), Mixture density networks, section 5; Bishop (2006), figure 5.19.

    Example:
        >>> data = inverse_sine(0)
        >>> data.X_train.shape, data.Y_train.shape, round(data.true_log_likelihood, 1)
        ((1000, 1), (1000, 1), 1.2)
    """
    rng = data_rng(seed)
    X_train, Y_train = _drawn(rng, n_samples, noise)
    X_test, Y_test = _drawn(rng, n_test or n_samples, noise)
    return Dataset(
        X_train,
        X_test,
        n_components,
        Y_train=Y_train,
        Y_test=Y_test,
        true_log_likelihood=float(inverse_sine_log_densities(X_test, Y_test, noise).mean()),
    )


def inverse_sine_log_densities(X: FloatArray, Y: FloatArray, noise: float) -> FloatArray:
    """Log p(y|x) of the law behind `inverse_sine`, by quadrature.

    Args:
        X, Y: Shape (n_samples, 1); Y within [0, 1].
        noise: As in `inverse_sine`.

    Returns:
        Shape (n_samples,) [nat].
    """
    nodes = np.linspace(0.0, 1.0, 2 * math.ceil(NODES_PER_NOISE / noise / 2) + 1)
    simpson = np.full(len(nodes), 2.0)
    simpson[1::2], simpson[[0, -1]] = 4.0, 1.0
    log_steps = np.log(simpson / 3 / (len(nodes) - 1))
    evidence = [
        logsumexp(_log_noise(X[i : i + ROWS], nodes, noise) + log_steps, axis=1)
        for i in range(0, len(X), ROWS)
    ]
    return _log_noise(X, Y, noise)[:, 0] - np.concatenate(evidence)


def _drawn(rng: np.random.Generator, n_samples: int, noise: float) -> tuple[FloatArray, FloatArray]:
    """X and Y, each (n_samples, 1)."""
    Y = rng.uniform(size=(n_samples, 1))
    return _bend(Y) + noise * rng.standard_normal(Y.shape), Y


def _bend(y: FloatArray) -> FloatArray:
    return y + 0.3 * np.sin(2 * np.pi * y)


def _log_noise(x: FloatArray, y: FloatArray, noise: float) -> FloatArray:
    """log N(x; f(y), noise^2), broadcast [nat]."""
    return -0.5 * ((x - _bend(y)) / noise) ** 2 - math.log(noise * math.sqrt(2 * math.pi))
