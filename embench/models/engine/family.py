"""What a covariance family has to say to the engine, and the M-step that all of them share.

Parameters and statistics are float64 NumPy arrays with any leading dimensions ``...``, K
components and D features; only `Family.lift`, `Family.whiten` and `Family.scatter` see samples,
as NumPy arrays or torch tensors.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embench.types import FloatArray

BoolArray = NDArray[np.bool_]

ILL_DEFINED = (
    "Fitting the mixture model failed because some components have ill-defined empirical "
    "covariance (for instance caused by singleton or collapsed samples). Try to decrease the "
    "number of components, increase reg_covar, or scale the input data."
)

COUNT_FLOOR = 10 * float(np.finfo(np.float64).eps)
"""scikit-learn's: keeps a component without samples finite, and moves no other one by more than its
last digits, but enough that the variance of a single sample is not exactly 0."""


class IllDefinedCovariance(ValueError):
    """A covariance that is not positive definite."""


class PrecisionWarning(RuntimeWarning):
    """The digits of the samples do not resolve a component."""


class RegularisationWarning(RuntimeWarning):
    """A covariance needed more regularisation than was asked for."""


def warn_of_regularisation(whose: str, factor: float) -> None:
    """Say that a covariance got more regularisation than was asked for."""
    warnings.warn(
        f"the covariance {whose} is not positive definite (fewer samples than features?): "
        f"added {factor:g} times reg_covar",
        RegularisationWarning,
        stacklevel=3,
    )


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
        return Statistics._make([*(factor * part for part in self[:-1]), self.about])

    def averaged(self) -> Statistics:
        """Per sample instead of summed."""
        return self.scaled(1 / float(self.n_samples))


class Family(ABC):
    """One covariance family. Y is [..., D + 1, n] in the frame, the last row ones."""

    name: ClassVar[str]
    """What it is called."""

    own_dimensions: ClassVar[int]
    """Dimensions of one covariance: 2 for a matrix, 1 for variances, 0 for a variance."""

    is_shared: ClassVar[bool] = False
    """Whether all components have the same covariance."""

    is_learned: ClassVar[bool] = True
    """Whether there is anything to be learned about a covariance."""

    has_pairs: ClassVar[bool] = False
    """Whether the products are of all pairs of features."""

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
        """Z = y - mean [D, n] of one component in units of standard deviations; overwrites Z."""

    @abstractmethod
    def scatter(self, Z: Any) -> Any:
        """Sum over samples of the products that the family's covariances are made of, [D, n] in."""

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

    @abstractmethod
    def unit(self, covariance: FloatArray) -> FloatArray:
        """What makes data of this covariance as round as the family allows.

        In any direction: the lower triangular factor of a covariance [..., D, D]. Along each axis,
        or by one scale for all: standard deviations [..., D] of variances [..., D].
        """

    @abstractmethod
    def rescale(
        self, covariances: FloatArray, factors: FloatArray, A: FloatArray, inverse: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Covariances and factors of A y, A as `unit` makes it."""

    @abstractmethod
    def regularisation(self, inverse: FloatArray) -> FloatArray:
        """What 1 on the diagonal of a covariance of x is for one of ``inverse`` x, an inverse of
        what `unit` makes."""

    @property
    def is_rotated(self) -> bool:
        """Whether covariances, and so the frame, mix features."""
        return self.own_dimensions == 2

    def identity(self, n_features: int) -> FloatArray:
        """What leaves y as it is, as `unit` makes it."""
        return np.eye(n_features) if self.is_rotated else np.ones(n_features)

    def round_covariances(self, n_components: int, n_features: int) -> FloatArray:
        """Covariances of 1 in every direction, in the shape of this family."""
        shape = [n_components] * (not self.is_shared) + [n_features] * self.own_dimensions
        return np.broadcast_to(np.eye(n_features) if self.is_rotated else 1.0, shape).copy()

    @property
    def complete(self) -> Family:
        """The same family with log-joints that lack nothing, for those who change them."""
        return self

    def own(self, array: FloatArray, index: tuple[int, ...]) -> FloatArray:
        """A component's part of covariances or their factors."""
        return array[index]

    def set_second(self, seconds: FloatArray, index: tuple[int, ...], second: FloatArray) -> None:
        """Put a component's second moment into its place among all of them."""
        seconds[index] = second

    def collapse(self, covariances: FloatArray, empty: BoolArray) -> None:
        """Set the covariances of ``empty`` components to zero, where each has its own."""
        covariances[empty] = 0

    def per_covariance(self, counts: FloatArray) -> FloatArray:
        """Counts [..., K] in a shape that multiplies covariances: their sum where one is shared."""
        counts = counts.sum(-1) if self.is_shared else counts
        return np.reshape(counts, (*counts.shape, *[1] * self.own_dimensions))

    def constant(self, parameters: Parameters, log_scale: FloatArray) -> FloatArray:
        """Log-joint at the mean, [..., K] [nat]; ``log_scale`` [...] is that of the frame."""
        n_features = parameters.means.shape[-1]
        weights = parameters.weights
        # A weight of zero is a log-joint of minus infinity, and no reason for a warning.
        log_weights = np.log(weights, where=weights > 0, out=np.full(weights.shape, -np.inf))
        log_det = self.log_det(parameters.precisions_cholesky, n_features)
        scale = 0.5 * n_features * math.log(2 * math.pi) + log_scale
        return log_weights + log_det - scale[..., None]

    def offset(
        self, parameters: Parameters, linear: FloatArray, log_scale: FloatArray
    ) -> FloatArray:
        """What is left of a log-joint at the centre, [..., K, 1] [nat]; ``linear`` [..., K, D] are
        the precisions times the means."""
        constant = self.constant(parameters, log_scale)
        return (constant - 0.5 * (linear * parameters.means).sum(-1))[..., None]

    def maximise(
        self,
        statistics: Statistics,
        previous: Parameters,
        regularisation: FloatArray,
        *,
        mend: bool = True,
    ) -> Parameters:
        """The mixture that maximises the expected log-joint: the M-step.

        Args:
            statistics: From an E-step.
            previous: The mixture of that E-step: a component that has lost all its samples keeps
                its mean and gets ``regularisation`` as covariance.
            regularisation: Added to every covariance, of a shape that broadcasts to it.
            mend: Add more of it where a covariance is not positive definite, with a warning.

        Raises:
            IllDefinedCovariance: A new covariance is not positive definite, and it is not to be
                mended, or ``regularisation`` is zero.
        """
        # Relative to the samples where their weights sum to less than one of them.
        floor = COUNT_FLOOR * min(1.0, float(np.max(statistics.n_samples)))
        counts = statistics.counts + floor
        shift = statistics.firsts / counts[..., None]
        covariances = self.covariances(statistics.seconds, counts, shift)
        empty = statistics.counts <= floor
        if empty.any():
            shift[empty] = (previous.means - statistics.about)[empty]
            self.collapse(covariances, empty)
        covariances = covariances + regularisation
        weights, means = counts / counts.sum(-1)[..., None], statistics.about + shift
        try:
            factors = self.precisions_cholesky(covariances)
        except IllDefinedCovariance:
            if not mend:
                raise
            covariances = self._mended(covariances, regularisation)
            factors = self.precisions_cholesky(covariances)
        return Parameters(weights, means, covariances, factors)

    def definite(self, parameters: Parameters, reg_covar: float) -> Parameters:
        """The same mixture, its covariances positive definite in the digits that they have.

        Raises:
            IllDefinedCovariance: They are not, and ``reg_covar`` is 0.
        """
        covariances = parameters.covariances
        try:
            self.precisions_cholesky(covariances)
        except IllDefinedCovariance:
            identity = self.regularisation(self.identity(parameters.means.shape[-1]))
            covariances = self._mended(covariances, reg_covar * identity)
            return parameters._replace(
                covariances=covariances, precisions_cholesky=self.precisions_cholesky(covariances)
            )
        return parameters

    def _mended(self, covariances: FloatArray, regularisation: FloatArray) -> FloatArray:
        """With ten times more regularisation, until each covariance is positive definite.

        Raises:
            IllDefinedCovariance: There is no regularisation to multiply.
        """
        if not np.any(regularisation) or not np.isfinite(covariances).all():
            raise IllDefinedCovariance(ILL_DEFINED)
        covariances = np.array(covariances)
        regularisation = np.broadcast_to(regularisation, covariances.shape)
        for index in np.ndindex(covariances.shape[: covariances.ndim - self.own_dimensions]):
            factor = 1.0
            while not self._is_definite(covariances[index]):
                covariances[index] += 9 * factor * regularisation[index]
                factor *= 10
            if factor > 1:
                warn_of_regularisation(f"of component {index[-1] if index else 0}", factor)
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
        sums = [a + step * b for a, b in zip(one[:-1], moved[:-1], strict=True)]
        return Statistics._make([*sums, one.about])
