"""The covariance families: products, coefficients and moments of each.

`Family` says what each method means; Z is [D, n], leading dimensions are ``...``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from embench.models.engine import linalg
from embench.models.engine.family import (
    ILL_DEFINED,
    BoolArray,
    Family,
    IllDefinedCovariance,
    Parameters,
)
from embench.types import FloatArray, IntArray

RIDGE = 1e-12
"""Added to the variances that a frame is made of, relative to them: a frame can be inverted
whatever the data."""


class Full(Family):
    """One covariance matrix per component."""

    name = "full"
    own_dimensions = 2
    has_pairs = True

    def n_products(self, n_features: int) -> int:
        return n_features * (n_features + 1) // 2 + n_features + 1

    def lift(self, Y: Any, out: Any, xp: Any) -> None:
        n_features = Y.shape[-2] - 1
        begin = 0
        for i in range(n_features):
            end = begin + n_features - i
            xp.multiply(Y[..., i:-1, :], Y[..., i, None, :], out=out[..., begin:end, :])
            begin = end
        out[..., begin:, :] = Y

    def coefficients(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        factor = parameters.precisions_cholesky
        precisions = factor @ factor.swapaxes(-1, -2)
        linear = (precisions @ parameters.means[..., None])[..., 0]
        pairs, scale, _ = _packing(parameters.means.shape[-1])
        packed = precisions.reshape(*linear.shape[:-1], -1)[..., pairs] * scale
        return np.concatenate([packed, linear, self.offset(parameters, linear, log_scale)], axis=-1)

    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        _, _, places = _packing(n_features)
        return sums[..., places].reshape(*sums.shape[:-1], n_features, n_features)

    def whiten(self, Z: Any, precisions_cholesky: Any) -> Any:
        return linalg.transposed_product(precisions_cholesky, Z)

    def scatter(self, Z: Any) -> Any:
        return Z @ Z.swapaxes(-1, -2)

    def log_det(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return np.log(precisions_cholesky.diagonal(0, -2, -1)).sum(-1)

    def covariances(self, seconds: FloatArray, counts: FloatArray, shift: FloatArray) -> FloatArray:
        return linalg.symmetric(seconds / counts[..., None, None] - _outer(shift, shift))

    def precisions_cholesky(self, covariances: FloatArray) -> FloatArray:
        try:
            return linalg.inverse_factors(covariances)
        except np.linalg.LinAlgError:
            raise IllDefinedCovariance(ILL_DEFINED) from None

    def translate(
        self, seconds: FloatArray, counts: FloatArray, firsts: FloatArray, shift: FloatArray
    ) -> FloatArray:
        mixed = _outer(firsts - 0.5 * counts[..., None] * shift, shift)
        return seconds - mixed - mixed.swapaxes(-1, -2)

    def trace_of_precision(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return np.square(precisions_cholesky).sum((-2, -1))

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features * (n_features + 1) // 2

    def unit(self, covariance: FloatArray) -> FloatArray:
        variances = _positive(covariance.diagonal(0, -2, -1))
        padding = variances[..., None] * np.eye(variances.shape[-1])
        ridge = RIDGE
        while True:
            try:
                return np.asarray(np.linalg.cholesky(covariance + ridge * padding), np.float64)
            except np.linalg.LinAlgError:
                ridge *= 100

    def rescale(
        self, covariances: FloatArray, factors: FloatArray, A: FloatArray, inverse: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        A, inverse = A[..., None, :, :], inverse[..., None, :, :]
        scaled = linalg.symmetric(A @ covariances @ A.swapaxes(-1, -2))
        return scaled, inverse.swapaxes(-1, -2) @ factors

    def regularisation(self, inverse: FloatArray) -> FloatArray:
        return (inverse @ inverse.swapaxes(-1, -2))[..., None, :, :]


class Tied(Full):
    """One covariance matrix for all components.

    The quadratic term is the same for all of them, so it cancels in the responsibilities: the
    products are Y itself. Log-joints of the fast pass lack it; its sum over samples follows from
    the second moments of all samples, which never change.
    """

    name = "tied"
    is_shared = True
    has_pairs = False

    @property
    def complete(self) -> Family:
        return _COMPLETE_TIED

    def n_products(self, n_features: int) -> int:
        return n_features + 1

    def own(self, array: FloatArray, index: tuple[int, ...]) -> FloatArray:
        return array[index[:-1]]

    def set_second(self, seconds: FloatArray, index: tuple[int, ...], second: FloatArray) -> None:
        seconds[index[:-1]] += second

    def lift(self, Y: Any, out: Any, xp: Any) -> None:
        out[...] = Y

    def coefficients(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        factor = parameters.precisions_cholesky
        linear = parameters.means @ factor @ factor.swapaxes(-1, -2)
        return np.concatenate([linear, self.offset(parameters, linear, log_scale)], axis=-1)

    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        # Those of all samples take their place.
        return np.zeros((*sums.shape[:-2], n_features, n_features))

    def log_det(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return super().log_det(precisions_cholesky, n_features)[..., None]

    def covariances(self, seconds: FloatArray, counts: FloatArray, shift: FloatArray) -> FloatArray:
        between = (counts[..., None] * shift).swapaxes(-1, -2) @ shift
        return linalg.symmetric((seconds - between) / counts.sum(-1)[..., None, None])

    def translate(
        self, seconds: FloatArray, counts: FloatArray, firsts: FloatArray, shift: FloatArray
    ) -> FloatArray:
        each = np.zeros((*counts.shape, *seconds.shape[-2:]))
        return seconds + super().translate(each, counts, firsts, shift).sum(-3)

    def trace_of_precision(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return super().trace_of_precision(precisions_cholesky, n_features)[..., None]

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return super().n_parameters(1, n_features)

    def collapse(self, covariances: FloatArray, empty: BoolArray) -> None:
        """None: the covariance is made of all components."""

    def rescale(
        self, covariances: FloatArray, factors: FloatArray, A: FloatArray, inverse: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        scaled = linalg.symmetric(A @ covariances @ A.swapaxes(-1, -2))
        return scaled, inverse.swapaxes(-1, -2) @ factors

    def regularisation(self, inverse: FloatArray) -> FloatArray:
        return inverse @ inverse.swapaxes(-1, -2)


class CompleteTied(Tied):
    """`Tied` with the quadratic term in its log-joints: products as in `Full`."""

    has_pairs = True

    def n_products(self, n_features: int) -> int:
        return Full.n_products(self, n_features)

    def lift(self, Y: Any, out: Any, xp: Any) -> None:
        Full.lift(self, Y, out, xp)

    def coefficients(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        pairs, scale, _ = _packing(parameters.means.shape[-1])
        factor = parameters.precisions_cholesky
        precision = factor @ factor.swapaxes(-1, -2)
        packed = precision.reshape(*precision.shape[:-2], 1, -1)[..., pairs] * scale
        rest = super().coefficients(parameters, log_scale)
        repeated = np.broadcast_to(packed, (*rest.shape[:-1], len(pairs)))
        return np.concatenate([repeated, rest], axis=-1)

    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        return Full.seconds(self, sums, n_features).sum(-3)


_COMPLETE_TIED = CompleteTied()


class Diag(Family):
    """One variance per component and feature."""

    name = "diag"
    own_dimensions = 1

    def n_products(self, n_features: int) -> int:
        return 2 * n_features + 1

    def lift(self, Y: Any, out: Any, xp: Any) -> None:
        n_features = Y.shape[-2] - 1
        xp.multiply(Y[..., :-1, :], Y[..., :-1, :], out=out[..., :n_features, :])
        out[..., n_features:, :] = Y

    def coefficients(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        precisions = self._precisions(parameters.precisions_cholesky)
        linear = precisions * parameters.means
        rest = self.offset(parameters, linear, log_scale)
        return np.concatenate([-0.5 * precisions, linear, rest], axis=-1)

    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        return sums[..., :n_features]

    def whiten(self, Z: Any, precisions_cholesky: Any) -> Any:
        Z *= precisions_cholesky[..., None]
        return Z

    def scatter(self, Z: Any) -> Any:
        return (Z * Z).sum(-1)

    def log_det(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return np.log(precisions_cholesky).sum(-1)

    def covariances(self, seconds: FloatArray, counts: FloatArray, shift: FloatArray) -> FloatArray:
        return seconds / counts[..., None] - np.square(shift)

    def precisions_cholesky(self, covariances: FloatArray) -> FloatArray:
        if not (covariances > 0).all():
            raise IllDefinedCovariance(ILL_DEFINED)
        return 1 / np.sqrt(covariances)

    def translate(
        self, seconds: FloatArray, counts: FloatArray, firsts: FloatArray, shift: FloatArray
    ) -> FloatArray:
        return seconds - (2 * firsts - counts[..., None] * shift) * shift

    def trace_of_precision(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return np.square(precisions_cholesky).sum(-1)

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features

    def unit(self, covariance: FloatArray) -> FloatArray:
        return np.sqrt(_positive(covariance))

    def rescale(
        self, covariances: FloatArray, factors: FloatArray, A: FloatArray, inverse: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        scale = A[..., None, :]
        return covariances * scale**2, factors / scale

    def regularisation(self, inverse: FloatArray) -> FloatArray:
        return np.square(inverse)[..., None, :]

    def _precisions(self, precisions_cholesky: FloatArray) -> FloatArray:
        """Factors of the squares of the features, times -2."""
        return np.square(precisions_cholesky)


class Spherical(Diag):
    """One variance per component; its second moments are means over the features."""

    name = "spherical"
    own_dimensions = 0

    def n_products(self, n_features: int) -> int:
        return n_features + 2

    def lift(self, Y: Any, out: Any, xp: Any) -> None:
        out[..., 0, :] = (Y[..., :-1, :] ** 2).sum(-2)
        out[..., 1:, :] = Y

    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        return sums[..., 0] / n_features

    def whiten(self, Z: Any, precisions_cholesky: Any) -> Any:
        Z *= precisions_cholesky[..., None, None]
        return Z

    def scatter(self, Z: Any) -> Any:
        return super().scatter(Z).sum(-1) / Z.shape[-2]

    def log_det(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return n_features * np.log(precisions_cholesky)

    def covariances(self, seconds: FloatArray, counts: FloatArray, shift: FloatArray) -> FloatArray:
        return seconds / counts - np.square(shift).mean(-1)

    def translate(
        self, seconds: FloatArray, counts: FloatArray, firsts: FloatArray, shift: FloatArray
    ) -> FloatArray:
        return seconds - ((2 * firsts - counts[..., None] * shift) * shift).mean(-1)

    def trace_of_precision(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return n_features * np.square(precisions_cholesky)

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components

    def unit(self, covariance: FloatArray) -> FloatArray:
        variance = covariance.mean(-1, keepdims=True)
        return np.broadcast_to(np.sqrt(_positive(variance)), covariance.shape)

    def rescale(
        self, covariances: FloatArray, factors: FloatArray, A: FloatArray, inverse: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        scale = A[..., 0][..., None]
        return covariances * scale**2, factors / scale

    def regularisation(self, inverse: FloatArray) -> FloatArray:
        return np.square(inverse[..., 0])[..., None]

    def _precisions(self, precisions_cholesky: FloatArray) -> FloatArray:
        return np.square(precisions_cholesky)[..., None]


class TiedSpherical(Spherical):
    """One variance for all components and features."""

    name = "tied_spherical"
    is_shared = True

    def coefficients(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        precision = np.square(parameters.precisions_cholesky)[..., None, None]
        linear = precision * parameters.means
        rest = self.offset(parameters, linear, log_scale)
        return np.concatenate(
            [np.broadcast_to(-0.5 * precision, rest.shape), linear, rest], axis=-1
        )

    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        return super().seconds(sums, n_features).sum(-1)

    def own(self, array: FloatArray, index: tuple[int, ...]) -> FloatArray:
        return array[index[:-1]]

    def set_second(self, seconds: FloatArray, index: tuple[int, ...], second: FloatArray) -> None:
        seconds[index[:-1]] += second

    def log_det(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return super().log_det(precisions_cholesky, n_features)[..., None]

    def covariances(self, seconds: FloatArray, counts: FloatArray, shift: FloatArray) -> FloatArray:
        between = (counts * np.square(shift).mean(-1)).sum(-1)
        return (seconds - between) / counts.sum(-1)

    def translate(
        self, seconds: FloatArray, counts: FloatArray, firsts: FloatArray, shift: FloatArray
    ) -> FloatArray:
        return seconds + super().translate(np.zeros(()), counts, firsts, shift).sum(-1)

    def trace_of_precision(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return super().trace_of_precision(precisions_cholesky, n_features)[..., None]

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return 1

    def collapse(self, covariances: FloatArray, empty: BoolArray) -> None:
        """None: the variance is made of all components."""

    def rescale(
        self, covariances: FloatArray, factors: FloatArray, A: FloatArray, inverse: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        scale = A[..., 0]
        return covariances * scale**2, factors / scale

    def regularisation(self, inverse: FloatArray) -> FloatArray:
        return np.square(inverse[..., 0])


class Constant(TiedSpherical):
    """A variance of 1 [u^2] for all components and features, which is not learned."""

    name = "constant"
    is_learned = False

    def covariances(self, seconds: FloatArray, counts: FloatArray, shift: FloatArray) -> FloatArray:
        return np.ones(seconds.shape)

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return 0

    def unit(self, covariance: FloatArray) -> FloatArray:
        # In any other frame it would not be 1.
        return np.ones_like(covariance)

    def regularisation(self, inverse: FloatArray) -> FloatArray:
        return np.zeros(inverse.shape[:-1])


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (Full(), Tied(), Diag(), Spherical(), TiedSpherical(), Constant())
}


@cache
def _packing(n_features: int) -> tuple[IntArray, FloatArray, IntArray]:
    """How symmetric matrices are packed into products: the flat places of the upper triangle row
    by row, the factor of each in -1/2 y' S y, and for each entry of a matrix its packed place."""
    rows, columns = np.triu_indices(n_features)
    places = np.zeros((n_features, n_features), dtype=np.int64)
    places[rows, columns] = places[columns, rows] = np.arange(len(rows))
    return rows * n_features + columns, np.where(rows == columns, -0.5, -1.0), places.ravel()


def _outer(a: FloatArray, b: FloatArray) -> FloatArray:
    return a[..., :, None] * b[..., None, :]


def _positive(variances: FloatArray) -> FloatArray:
    """Variances, with 1 for none: what does not vary keeps its unit."""
    return np.where(variances > 0, variances, 1.0)
