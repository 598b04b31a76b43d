"""Covariance families between their compact shapes and full matrices, in NumPy.

| family | covariances and precisions |
|---|---|
| full | (n_components, n_features, n_features) |
| tied | (n_features, n_features) |
| diag | (n_components, n_features) |
| spherical | (n_components,) |
| tied_spherical | () |
| constant | (), which is 1 |
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.mixture._base import BaseMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

from embench.models.engine import FAMILIES, Family
from embench.models.engine.family import COUNT_FLOOR
from embench.models.engine.linalg import inverse_factors
from embench.types import COVARIANCE_ALIASES, FloatArray, Mixture

NAMES = frozenset({*FAMILIES, *COVARIANCE_ALIASES})
"""Every ``covariance_type`` that there is."""

ONE_VARIANCE = [
    name for name, family in FAMILIES.items() if family.is_shared and not family.own_dimensions
]
"""Families that scikit-learn does not have: to it they are spherical."""


def named(covariance_type: str) -> Family:
    """The family of a name or of its alias.

    >>> named("shared_isotropic").name
    'tied_spherical'
    """
    return FAMILIES[COVARIANCE_ALIASES.get(covariance_type, covariance_type)]


def mixture(
    weights: FloatArray, means: FloatArray, covariances: FloatArray, covariance_type: str
) -> Mixture:
    """A mixture in float64 with full covariance matrices, from a family's shape."""
    weights, means, covariances = (
        np.array(array, dtype=np.float64) for array in (weights, means, covariances)
    )
    return Mixture(
        weights / weights.sum(), means, _full(covariances, covariance_type, *means.shape)
    )


def initialise(
    model: BaseMixture,
    X: FloatArray,
    random_state: np.random.RandomState,
    sample_weight: FloatArray | None = None,
) -> None:
    """Set the start's attributes as scikit-learn does, and the covariances in every case.

    scikit-learn leaves them out where ``precisions_init`` is given: its EM needs the factors only.
    Where all of the start is given there is nothing to make it of.
    """
    family = named(model.covariance_type).name
    known = in_known_words(model)
    if known is not model:
        initialise(known, X, random_state, sample_weight)
        model.weights_, model.means_ = known.weights_, known.means_
        model.covariances_ = _pooled(known.weights_, known.covariances_, family)
        model.precisions_cholesky_ = FAMILIES[family].precisions_cholesky(model.covariances_)
        return
    params = model.get_params()
    given = [params.get(f"{part}_init") is not None for part in ("weights", "means", "precisions")]
    if all(given):
        model._initialize(X, None)
    elif sample_weight is None:
        model._initialize_parameters(X, random_state)
    else:
        _initialise_weighted(model, X, random_state, sample_weight)
    if given[-1]:
        model.covariances_ = _covariances(model.precisions_cholesky_, model.covariance_type)


def in_known_words(model: BaseMixture) -> BaseMixture:
    """The model, or a copy in a family that scikit-learn has: starts and checks are its own.

    Raises:
        ValueError: ``precisions_init`` is not a single positive number where the family has one
            variance, or not 1 where that is constant.
    """
    family = named(model.covariance_type).name
    if family == model.covariance_type and family not in ONE_VARIANCE:
        return model
    known = copy(model)
    known.covariance_type = "spherical" if family in ONE_VARIANCE else family
    if family in ONE_VARIANCE and model.precisions_init is not None:
        given = np.asarray(model.precisions_init, dtype=np.float64)
        if given.ndim or not given > 0 or (family == "constant" and given != 1):
            wanted = "1" if family == "constant" else "one number > 0"
            raise ValueError(f"{family}: expected precisions_init of {wanted}, got {given}")
        known.precisions_init = np.full(model.n_components, given)
    return known


def compact(start: Mixture, covariance_type: str) -> FloatArray:
    """The covariances of a mixture in the shape of a family.

    Raises:
        ValueError: They are not of this family (no rounding to the nearest).
    """
    found = _compact(start.covariances, covariance_type)
    same = found is start.covariances or np.allclose(
        _full(found, covariance_type, *start.means.shape), start.covariances, rtol=1e-12
    )
    if not same:
        raise ValueError(f"the start's covariances are not {covariance_type}")
    return found


def start_params(start: Mixture, covariance_type: str) -> dict[str, Any]:
    """The three ``*_init`` parameters that make scikit-learn's mixtures begin at ``start``.

    Raises:
        ValueError: The start's covariances are not of this family.
    """
    covariances = compact(start, covariance_type)
    matrices = named(covariance_type).is_rotated
    return {
        "weights_init": start.weights,
        "means_init": start.means,
        # From a factor: symmetric to the last digit.
        "precisions_init": _squared(inverse_factors(covariances)) if matrices else 1 / covariances,
    }


def _initialise_weighted(
    model: BaseMixture,
    X: FloatArray,
    random_state: np.random.RandomState,
    sample_weight: FloatArray,
) -> None:
    """scikit-learn's starts for samples that do not all count the same."""
    n_samples, K = len(X), model.n_components
    shares = sample_weight / sample_weight.sum()
    sample_weight = n_samples * shares  # scikit-learn's floors take a sample to count about 1
    resp = np.zeros((n_samples, K), dtype=X.dtype)
    if model.init_params == "random":
        resp += random_state.dirichlet(np.ones(K), size=n_samples)
    elif model.init_params == "kmeans":
        found = KMeans(K, n_init=1, random_state=random_state).fit(X, sample_weight=sample_weight)
        resp[np.arange(n_samples), found.labels_] = 1
    elif model.init_params == "k-means++":
        _, chosen = kmeans_plusplus(X, K, random_state=random_state, sample_weight=sample_weight)
        resp[chosen, np.arange(K)] = 1
    else:
        if np.count_nonzero(shares) < K:
            raise ValueError(
                f"expected at least n_components = {K} samples of positive weight, got "
                f"{np.count_nonzero(shares)}"
            )
        resp[random_state.choice(n_samples, K, replace=False, p=shares), np.arange(K)] = 1
    resp *= sample_weight[:, None].astype(X.dtype)
    if model.covariance_type == "tied" and model.precisions_init is None:
        _initialise_weighted_tied(model, X, resp, sample_weight)
    else:
        model._initialize(X, resp)
    if model.weights_init is None:
        model.weights_ = model.weights_ / model.weights_.sum()


def _initialise_weighted_tied(
    model: BaseMixture, X: FloatArray, resp: FloatArray, sample_weight: FloatArray
) -> None:
    """The same for a tied covariance, where scikit-learn's sum takes every sample to count once."""
    counts = resp.sum(axis=0) + COUNT_FLOOR
    means = resp.T @ X / counts[:, None]
    scatter = (X * sample_weight[:, None]).T @ X - (counts[:, None] * means).T @ means
    model.weights_ = counts if model.weights_init is None else model.weights_init
    model.means_ = means if model.means_init is None else model.means_init
    model.covariances_ = scatter / counts.sum() + model.reg_covar * np.eye(X.shape[1])
    model.precisions_cholesky_ = _compute_precision_cholesky(model.covariances_, "tied")


def precisions(precisions_cholesky: FloatArray, covariance_type: str) -> FloatArray:
    """Inverse covariances [u^-2] of their factors, in the family's shape."""
    if named(covariance_type).is_rotated:
        return _squared(precisions_cholesky)
    return np.square(precisions_cholesky)


def upper(precisions_cholesky: FloatArray, covariance_type: str) -> FloatArray:
    """Factors P of P P' = precision as the engine wants them: matrices are upper triangular.

    Those that a fit leaves are; what users set as ``precisions_cholesky_`` may be any factor.
    """
    if not named(covariance_type).is_rotated or not np.tril(precisions_cholesky, -1).any():
        return precisions_cholesky
    covariances = np.linalg.inv(_squared(precisions_cholesky)).astype(np.float64)
    return inverse_factors(covariances)


def _squared(factors: FloatArray) -> FloatArray:
    return factors @ factors.swapaxes(-1, -2)


def _covariances(precisions_cholesky: FloatArray, covariance_type: str) -> FloatArray:
    """Covariances [u^2] of the factors P with P P' = precision, in the family's shape."""
    if named(covariance_type).is_rotated:
        inverse = np.linalg.inv(precisions_cholesky)
        return inverse.swapaxes(-1, -2) @ inverse
    return 1.0 / np.square(precisions_cholesky)


def _pooled(weights: FloatArray, variances: FloatArray, family: str) -> FloatArray:
    """Variances of components in the shape of a family."""
    if family == "constant":
        return np.ones(())
    return np.asarray(weights @ variances) if family == "tied_spherical" else variances


def _full(
    covariances: FloatArray, covariance_type: str, n_components: int, n_features: int
) -> FloatArray:
    """Full matrices (n_components, n_features, n_features) from a family's shape."""
    family = named(covariance_type)
    if family.is_shared:
        covariances = np.repeat(np.asarray(covariances)[None], n_components, axis=0)
    if family.is_rotated:
        return covariances
    variances = covariances.reshape(n_components, -1, 1)
    return variances * np.eye(n_features)


def _compact(covariances: FloatArray, covariance_type: str) -> FloatArray:
    """A family's shape from full matrices, reading only the entries that the family has."""
    family = named(covariance_type)
    if family.name == "constant":
        return np.ones(())
    own = covariances if family.is_rotated else np.diagonal(covariances, axis1=1, axis2=2)
    own = own[:, 0] if family.own_dimensions == 0 else own
    return np.asarray(own[0]) if family.is_shared else own
