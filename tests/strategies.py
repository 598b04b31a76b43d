"""Random mixtures, and samples for them, shared by the tests of the judge and of the models.

Hypothesis draws sizes and a seed; NumPy draws the numbers. Examples are the same in every run, so
that a tolerance that is too narrow shows when it is written and not months later.
"""

from __future__ import annotations

import math
import random
import sys
from fractions import Fraction

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from embench import make_model
from embench.types import Mixture

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
"""The families that scikit-learn has, too."""

ALL_COVARIANCE_TYPES = (*COVARIANCE_TYPES, "tied_spherical", "constant")
"""With a constant covariance nothing scales with the data: most laws are about the others."""

law = settings(deadline=None, max_examples=25, derandomize=True)
"""How a law is tried: no clock, because the machine is shared."""

seeds = st.integers(0, 2**32 - 1)
covariance_types = st.sampled_from(ALL_COVARIANCE_TYPES[:-1])


def random_mixture(rng, n_components, n_features, covariance_type="full") -> Mixture:
    """A mixture whose components overlap a little and are well conditioned."""
    factors = rng.standard_normal((n_components, n_features, n_features))
    covariances = factors @ factors.swapaxes(1, 2) / n_features + 0.3 * np.eye(n_features)
    weights = rng.uniform(0.3, 1.0, n_components)
    return Mixture(
        weights / weights.sum(),
        2.0 * rng.standard_normal((n_components, n_features)),
        expand(compact(covariances, covariance_type), covariance_type, n_components, n_features),
    )


def random_samples(rng, mixture, n_samples):
    """Samples near the means of a mixture, more widely spread than its components."""
    labels = rng.integers(mixture.n_components, size=n_samples)
    return mixture.means[labels] + 1.5 * rng.standard_normal((n_samples, mixture.n_features))


@st.composite
def problems(draw, covariance_type="full", max_components=4, max_features=4):
    """A mixture of one family and samples for it, enough for each component to stay alive."""
    rng = np.random.default_rng(draw(seeds))
    n_components = draw(st.integers(1, max_components))
    n_features = draw(st.integers(1, max_features))
    mixture = random_mixture(rng, n_components, n_features, covariance_type)
    return mixture, random_samples(rng, mixture, 60 * n_components)


family_problems = covariance_types.flatmap(
    lambda family: st.tuples(st.just(family), problems(family))
)
"""A family, a mixture of it and samples."""


def model_at(name, start, **params):
    """A model that begins at ``start`` and runs all its steps."""
    params = {"tol": 0.0, "random_state": 0, "n_components": start.n_components, **params}
    return make_model(name, **params).start_from(start)


def path(model, X):
    """The mixtures at the start and after every iteration."""
    return [model.mixture_ for _ in model.iter_fit(X)]


def assert_same(one, other, rtol=1e-10, atol=1e-10):
    """Two mixtures are equal but for rounding."""
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        assert_allclose(a, b, rtol=rtol, atol=atol)


def compact(covariances, covariance_type):
    """Full matrices in the shape of a family, by averaging what the family cannot hold."""
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return covariances.mean(axis=0)
    if covariance_type == "constant":
        return np.ones(())
    variances = np.diagonal(covariances, axis1=1, axis2=2)
    return {
        "diag": variances.copy(),
        "spherical": variances.mean(axis=1),
        "tied_spherical": variances.mean(),
    }[covariance_type]


def expand(covariances, covariance_type, n_components, n_features):
    """Full matrices (n_components, n_features, n_features) from a family's shape."""
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return np.stack([covariances] * n_components)
    if covariance_type == "diag":
        return np.stack([np.diag(variances) for variances in covariances])
    covariances = np.broadcast_to(covariances, n_components)
    return np.stack([variance * np.eye(n_features) for variance in covariances])


def permuted(mixture, order) -> Mixture:
    """The same mixture with its components in another order."""
    return Mixture(mixture.weights[order], mixture.means[order], mixture.covariances[order])


def global_random_state() -> tuple[str, ...]:
    """What the next draw from each library's global generator depends on."""
    with np.printoptions(threshold=sys.maxsize):
        numpy = repr(np.random.get_state())  # noqa: NPY002
    return numpy, repr(random.getstate()), repr(torch.get_rng_state().tolist())


def exact_log_joint(weight, mean, covariance, x) -> float:
    """Log of weight times density with its determinant and quadratic form in exact fractions."""
    rows = [
        [*map(Fraction, row), Fraction(value) - Fraction(centre)]
        for row, value, centre in zip(
            np.asarray(covariance).tolist(), x.tolist(), mean.tolist(), strict=True
        )
    ]
    difference = [row[-1] for row in rows]
    determinant = Fraction(1)
    for i, pivot in enumerate(rows):
        determinant *= pivot[i]
        for j, row in enumerate(rows):
            if j != i:
                factor = row[i] / pivot[i]
                rows[j] = [a - factor * b for a, b in zip(row, pivot, strict=True)]
    solved = [row[-1] / row[i] for i, row in enumerate(rows)]
    quadratic = sum(a * b for a, b in zip(difference, solved, strict=True))
    log_det = math.log(determinant.numerator) - math.log(determinant.denominator)
    return math.log(weight) - 0.5 * (float(quadratic) + log_det + len(rows) * math.log(2 * math.pi))
