"""What differs between covariance families: products, coefficients, moments, M-step.

Parameters and statistics are float64 NumPy arrays with any leading dimensions ``...``, K
components and D features; only `Family.lift`, `Family.whiten` and `Family.scatter` see samples,
as NumPy arrays or torch tensors.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embench.models.engine import linalg
from embench.types import FloatArray, IntArray

BoolArray = NDArray[np.bool_]

ILL_DEFINED = (
    "Fitting the mixture model failed because some components have ill-defined empirical "
    "covariance (for instance caused by singleton or collapsed samples). Try to decrease the "
    "number of components, increase reg_covar, or scale the input data."
)

COUNT_FLOOR = 10 * float(np.finfo(np.float64).eps)
"""scikit-learn's: keeps a component without samples finite, moves no other one."""


class IllDefinedCovariance(ValueError):
    """A covariance that is not positive definite."""


class RegularisationWarning(RuntimeWarning):
    """A covariance needed more regularisation than was asked for."""


class Parameters(NamedTuple):
    """A mixture: weights [..., K], means [..., K, D], and covariances and the Cholesky factors of
    the precisions in the shape of their family (full [..., K, D, D], tied [..., D, D], diag
    [..., K, D], spherical [..., K])."""

    weights: FloatArray
    means: FloatArray
    covariances: FloatArray
    precisions_cholesky: FloatArray


class Statistics(NamedTuple):
    """Sums over samples, with moments about ``about`` [..., K, D].

    ``total_log_likelihood`` [...] [nat]; ``counts`` [..., K], sums of responsibilities; ``firsts``
    [..., K, D], of responsibility times (x - about); ``seconds``, of the products that the family's
    covariances are made of (full [..., K, D, D], tied [..., D, D], diag [..., K, D],
    spherical [..., K]); ``n_samples`` [...], the sum of the sample weights.
    """

    total_log_likelihood: FloatArray
    counts: FloatArray
    firsts: FloatArray
    seconds: FloatArray
    n_samples: FloatArray
    about: FloatArray

    @property
    def log_likelihood(self) -> FloatArray:
        """Mean log-likelihood per sample [nat]."""
        return self.total_log_likelihood / self.n_samples

    def scaled(self, factor: float) -> Statistics:
        """All sums times a number."""
        return Statistics(*(factor * part for part in self[:-1]), self.about)

    def averaged(self) -> Statistics:
        """Per sample instead of summed."""
        return self.scaled(1 / float(self.n_samples))


class Family(ABC):
    """One covariance family. Y is [..., D + 1, n] in the frame, the last row ones."""

    def own(self, array: FloatArray, index: tuple[int, ...]) -> FloatArray:
        """A component's part of covariances or their factors."""
        return array[index]

    def set_second(self, seconds: FloatArray, index: tuple[int, ...], second: FloatArray) -> None:
        """Put a component's second moment into its place among all of them."""
        seconds[index] = second

    @property
    def complete(self) -> Family:
        """The same family with log-joints that lack nothing, for those who change them."""
        return self

    own_dimensions: ClassVar[int]
    """Dimensions of one covariance: 2 for a matrix, 1 for variances, 0 for a variance."""

    @abstractmethod
    def n_products(self, n_features: int) -> int:
        """Number of products of features that a log-joint is linear in."""

    @abstractmethod
    def lift(self, Y: Any, out: Any, xp: Any) -> None:
        """Write the products of Y into ``out`` [..., n_products, n]; the last D + 1 are Y."""

    @abstractmethod
    def coefficients(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        """Factors [..., K, n_products] whose product with the products is the log-joint."""

    @abstractmethod
    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        """Second moments from sums over responsibilities times products [..., K, n_products]."""

    @abstractmethod
    def whiten(self, Z: Any, precisions_cholesky: Any) -> Any:
        """Z = y - mean [D, n] of one component in units of standard deviations."""

    @abstractmethod
    def scatter(self, weighted_Z: Any, Z: Any) -> Any:
        """Sum over samples of the products that the family's covariances are made of."""

    @abstractmethod
    def log_det(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        """Log-determinant of each factor, [..., K] or [..., 1]."""

    @abstractmethod
    def covariances(self, seconds: FloatArray, counts: FloatArray, shift: FloatArray) -> FloatArray:
        """Covariances about the means, given moments about another point ``shift`` away."""

    @abstractmethod
    def precisions_cholesky(self, covariances: FloatArray) -> FloatArray:
        """Factor P with P P' = inverse covariance.

        Raises:
            IllDefinedCovariance: A covariance is not positive definite.
        """

    @abstractmethod
    def translate(
        self, seconds: FloatArray, counts: FloatArray, firsts: FloatArray, shift: FloatArray
    ) -> FloatArray:
        """Second moments about a point ``shift`` [..., K, D] further on."""

    @abstractmethod
    def trace_of_precision(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        """Trace of each precision matrix, [..., K] or [..., 1]."""

    @abstractmethod
    def n_parameters(self, n_components: int, n_features: int) -> int:
        """Number of free numbers in the covariances."""

    def constant(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        """Log-joint at the mean, [..., K] [nat]; ``log_scale`` [...] is that of the frame."""
        n_features = parameters.means.shape[-1]
        with np.errstate(divide="ignore"):  # a weight of zero is a log-joint of minus infinity
            log_weights = np.log(parameters.weights)
        return (
            log_weights
            + self.log_det(parameters.precisions_cholesky, n_features)
            - (0.5 * n_features * math.log(2 * math.pi) + log_scale)[..., None]
        )

    def maximise(
        self, statistics: Statistics, previous: Parameters, regularisation: FloatArray
    ) -> Parameters:
        """The mixture that maximises the expected log-joint: the M-step.

        Args:
            statistics: From an E-step.
            previous: The mixture of that E-step: a component that has lost all its samples keeps
                its mean and gets ``regularisation`` as covariance.
            regularisation: Added to every covariance, of a shape that broadcasts to it.

        Raises:
            IllDefinedCovariance: A new covariance is not positive definite.
        """
        counts = statistics.counts + COUNT_FLOOR
        shift = statistics.firsts / counts[..., None]
        covariances = self.covariances(statistics.seconds, counts, shift)
        empty = statistics.counts <= COUNT_FLOOR
        if empty.any():
            shift[empty] = (previous.means - statistics.about)[empty]
            self.collapse(covariances, empty)
        covariances = covariances + regularisation
        weights, means = counts / counts.sum(-1)[..., None], statistics.about + shift
        try:
            factors = self.precisions_cholesky(covariances)
        except IllDefinedCovariance:
            covariances = self._mended(covariances, regularisation)
            factors = self.precisions_cholesky(covariances)
        return Parameters(weights, means, covariances, factors)

    def _mended(self, covariances: FloatArray, regularisation: FloatArray) -> FloatArray:
        """With ten times more regularisation, until each covariance is positive definite.

        Raises:
            IllDefinedCovariance: There is no regularisation to multiply.
        """
        if not np.any(regularisation) or not np.isfinite(covariances).all():
            raise IllDefinedCovariance(ILL_DEFINED)
        covariances = covariances.copy()
        regularisation = np.broadcast_to(regularisation, covariances.shape)
        for index in np.ndindex(covariances.shape[: covariances.ndim - self.own_dimensions]):
            factor = 1.0
            while not self._is_definite(covariances[index]):
                covariances[index] += 9 * factor * regularisation[index]
                factor *= 10
            if factor > 1:
                warnings.warn(
                    f"the covariance of component {index[-1] if index else 0} is not positive "
                    f"definite (fewer samples than features?): added {factor:g} times reg_covar",
                    RegularisationWarning,
                    stacklevel=2,
                )
        return covariances

    def _is_definite(self, covariance: FloatArray) -> bool:
        try:
            self.precisions_cholesky(covariance)
        except IllDefinedCovariance:
            return False
        return True

    def combine(self, one: Statistics, other: Statistics, step: float = 1.0) -> Statistics:
        """``one + step * other``, about the point of ``one``: sums of two samples, or a running
        average of mini-batches."""
        shift = np.broadcast_to(one.about - other.about, other.firsts.shape)
        moved = Statistics(
            other.total_log_likelihood,
            other.counts,
            other.firsts - other.counts[..., None] * shift,
            self.translate(other.seconds, other.counts, other.firsts, shift),
            other.n_samples,
            one.about,
        )
        sums = (a + step * b for a, b in zip(one[:-1], moved[:-1], strict=True))
        return Statistics(*sums, one.about)

    def collapse(self, covariances: FloatArray, empty: BoolArray) -> None:
        """Set the covariances of ``empty`` components to zero, where each has its own."""
        covariances[empty] = 0


class Full(Family):
    """One covariance matrix per component."""

    own_dimensions = 2

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
        constant = self.constant(parameters, log_scale)
        constant = constant - 0.5 * (linear * parameters.means).sum(-1)
        pairs, scale, _ = _packing(parameters.means.shape[-1])
        packed = precisions.reshape(*linear.shape[:-1], -1)[..., pairs] * scale
        return np.concatenate([packed, linear, constant[..., None]], axis=-1)

    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        _, _, places = _packing(n_features)
        return sums[..., places].reshape(*sums.shape[:-1], n_features, n_features)

    def whiten(self, Z: Any, precisions_cholesky: Any) -> Any:
        return precisions_cholesky.swapaxes(-1, -2) @ Z

    def scatter(self, weighted_Z: Any, Z: Any) -> Any:
        return weighted_Z @ Z.swapaxes(-1, -2)

    def log_det(self, precisions_cholesky: FloatArray, n_features: int) -> FloatArray:
        return np.log(np.diagonal(precisions_cholesky, axis1=-2, axis2=-1)).sum(-1)

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


class Tied(Full):
    """One covariance matrix for all components.

    The quadratic term is the same for all of them, so it cancels in the responsibilities: the
    products are Y itself. Log-joints of the fast pass lack it; its sum over samples follows from
    the second moments of all samples, which never change.
    """

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
        constant = self.constant(parameters, log_scale)
        constant = constant - 0.5 * (linear * parameters.means).sum(-1)
        return np.concatenate([linear, constant[..., None]], axis=-1)

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


class CompleteTied(Tied):
    """`Tied` with the quadratic term in its log-joints: products as in `Full`."""

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

    own_dimensions = 1

    def n_products(self, n_features: int) -> int:
        return 2 * n_features + 1

    def lift(self, Y: Any, out: Any, xp: Any) -> None:
        n_features = Y.shape[-2] - 1
        xp.multiply(Y[..., :-1, :], Y[..., :-1, :], out=out[..., :n_features, :])
        out[..., n_features:, :] = Y

    def coefficients(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        precisions = np.square(parameters.precisions_cholesky)
        linear = precisions * parameters.means
        constant = self.constant(parameters, log_scale)
        constant = constant - 0.5 * (linear * parameters.means).sum(-1)
        return np.concatenate([-0.5 * precisions, linear, constant[..., None]], axis=-1)

    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        return sums[..., :n_features]

    def whiten(self, Z: Any, precisions_cholesky: Any) -> Any:
        return Z * precisions_cholesky[..., None]

    def scatter(self, weighted_Z: Any, Z: Any) -> Any:
        return (weighted_Z * Z).sum(-1)

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


class Spherical(Diag):
    """One variance per component; its second moments are means over the features."""

    own_dimensions = 0

    def n_products(self, n_features: int) -> int:
        return n_features + 2

    def lift(self, Y: Any, out: Any, xp: Any) -> None:
        out[..., 0, :] = (Y[..., :-1, :] ** 2).sum(-2)
        out[..., 1:, :] = Y

    def coefficients(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        precisions = np.square(parameters.precisions_cholesky)[..., None]
        linear = precisions * parameters.means
        constant = self.constant(parameters, log_scale)
        constant = constant - 0.5 * (linear * parameters.means).sum(-1)
        return np.concatenate([-0.5 * precisions, linear, constant[..., None]], axis=-1)

    def seconds(self, sums: FloatArray, n_features: int) -> FloatArray:
        return sums[..., 0] / n_features

    def whiten(self, Z: Any, precisions_cholesky: Any) -> Any:
        return Z * precisions_cholesky[..., None, None]

    def scatter(self, weighted_Z: Any, Z: Any) -> Any:
        return super().scatter(weighted_Z, Z).sum(-1) / Z.shape[-2]

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


FAMILIES: Mapping[str, Family] = {
    "full": Full(),
    "tied": Tied(),
    "diag": Diag(),
    "spherical": Spherical(),
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
