"""Mixtures as points of a manifold: augmented or naive."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np

from embench.models.engine import Parameters, Samples, Statistics, linalg
from embench.models.gradient.manifold import Manifold, Point
from embench.models.variants.coordinates import SMALLEST_WEIGHT
from embench.types import FloatArray


class Evaluation(NamedTuple):
    """What an E-step tells of a point: a mixture, and cost and gradient, per sample, in nat.

    ``scale`` [size] times the gradient is EM's step backwards, to first order.
    """

    point: Point
    parameters: Parameters
    statistics: Statistics
    log_likelihood: float
    cost: float
    gradient: FloatArray
    scale: FloatArray


class Formulation(ABC):
    """Mixtures as points of a manifold, and what an E-step says of one.

    The cost is a penalty minus the mean log-likelihood. ``shares`` [K] are the components' in the
    penalty: their weights where the step began.
    """

    n_added: ClassVar[int]
    """By how many rows and columns a matrix is larger than a covariance."""

    def __init__(self, samples: Samples, reg_covar: float, parameters: Parameters) -> None:
        self.samples, self.shares = samples, parameters.weights
        self.regularisation = samples.frame.regularisation(reg_covar)
        self.manifold = Manifold(len(self.shares), samples.n_features + self.n_added)

    @abstractmethod
    def point(self, parameters: Parameters) -> Point:
        """The point that stands for a mixture: its last numbers are the log weights."""

    @abstractmethod
    def mixture(self, point: Point) -> tuple[Parameters, float]:
        """The mixture with the responsibilities of a point, and by how much [nat] its
        log-likelihood exceeds what is maximised."""

    @abstractmethod
    def gradient(
        self,
        point: Point,
        parameters: Parameters,
        moments: tuple[FloatArray, FloatArray, FloatArray],
    ) -> FloatArray:
        """Coordinates of what is maximised, without the weights.

        Args:
            point: Where.
            parameters: The mixture of the point.
            moments: Counts [K], first and second moments [K, D], [K, D, D] about the means, in
                deviations of the components, per sample.
        """

    def evaluated(self, point: Point) -> Evaluation:
        """Any point, by one E-step."""
        parameters, excess = self.mixture(point)
        return self._evaluation(point, parameters, self.samples.e_step(parameters), excess)

    def shown(self, evaluation: Evaluation) -> Evaluation:
        """The point that stands for the mixture of this one, where the next step begins.

        The responsibilities are the same, so another E-step would tell nothing new.
        """
        _, parameters, statistics, *_ = evaluation
        self.shares = parameters.weights
        return self._evaluation(self.point(parameters), parameters, statistics, 0.0)

    def _evaluation(
        self, point: Point, parameters: Parameters, statistics: Statistics, excess: float
    ) -> Evaluation:
        weights = _weights(point.free[-len(self.shares) :])
        factors = parameters.precisions_cholesky
        precisions = factors @ factors.swapaxes(-1, -2)
        regularisation = self.shares[:, None, None] * self.regularisation
        moments = _moments(statistics, parameters, self.samples, regularisation)
        own = self.gradient(point, parameters, moments)
        # No component counts for less than a sample: what few tell is no ground for long steps.
        scale = 1 / np.maximum(moments[0], 1 / self.samples.n_samples)
        log_likelihood = float(statistics.log_likelihood)
        return Evaluation(
            point,
            parameters,
            statistics,
            log_likelihood,
            cost=0.5 * float((regularisation * precisions).sum()) + excess - log_likelihood,
            gradient=-np.concatenate([own, moments[0] - weights]),
            scale=np.concatenate(
                [
                    np.repeat(2 * scale, math.prod(self.manifold.shape[1:])),
                    np.repeat(scale, len(point.free) // len(scale) - 1),
                    scale,
                ]
            ),
        )


class Augmented(Formulation):
    """One matrix S of n_features + 1 for mean and covariance, and the log weights."""

    n_added = 1

    def point(self, parameters: Parameters) -> Point:
        factors = np.zeros(self.manifold.shape)
        factors[:, 0, 0] = 1
        factors[:, 1:, 0] = parameters.means
        factors[:, 1:, 1:] = _scale_tril(parameters)
        return Point(factors, _log_weights(parameters))

    def mixture(self, point: Point) -> tuple[Parameters, float]:
        root = point.factors[:, 0, 0]
        # log q - log N is like a log weight.
        log_weights = point.free + 0.5 * (1 - root**-2.0) - np.log(root)
        excess = np.logaddexp.reduce(point.free) - np.logaddexp.reduce(log_weights)
        means = point.factors[:, 1:, 0] / root[:, None]
        return _mixture(log_weights, means, point.factors[:, 1:, 1:]), float(excess)

    def gradient(
        self,
        point: Point,
        parameters: Parameters,
        moments: tuple[FloatArray, FloatArray, FloatArray],
    ) -> FloatArray:
        root = point.factors[:, 0, 0, None]
        counts, firsts, seconds = moments
        A = np.empty(self.manifold.shape)  # L^-1 M L^-T, where L^-1 y = (1 / root, whitened x)
        A[:, 0, 0] = counts / root[:, 0] ** 2
        A[:, 0, 1:] = A[:, 1:, 0] = firsts / root
        A[:, 1:, 1:] = seconds
        return 0.5 * (A - counts[:, None, None] * self.manifold.identity).ravel()


class Naive(Formulation):
    """Covariances; means and log weights are numbers like any others."""

    n_added = 0

    def point(self, parameters: Parameters) -> Point:
        free = np.concatenate([parameters.means.ravel(), _log_weights(parameters)])
        return Point(_scale_tril(parameters), free)

    def mixture(self, point: Point) -> tuple[Parameters, float]:
        K, D, _ = self.manifold.shape
        means, log_weights = point.free[:-K].reshape(K, D), point.free[-K:]
        return _mixture(log_weights, means, point.factors), 0.0

    def gradient(
        self,
        point: Point,
        parameters: Parameters,
        moments: tuple[FloatArray, FloatArray, FloatArray],
    ) -> FloatArray:
        counts, firsts, seconds = moments
        A = 0.5 * (seconds - counts[:, None, None] * self.manifold.identity)
        along_means = parameters.precisions_cholesky @ firsts[..., None]
        return np.concatenate([A.ravel(), along_means.ravel()])


def _weights(log_weights: FloatArray) -> FloatArray:
    """Weights that sum to one, of numbers that differ from their logarithms by a constant."""
    return np.exp(log_weights - np.logaddexp.reduce(log_weights))


def _mixture(log_weights: FloatArray, means: FloatArray, scale_tril: FloatArray) -> Parameters:
    return Parameters(
        _weights(log_weights),
        means,
        linalg.symmetric(scale_tril @ scale_tril.swapaxes(-1, -2)),
        linalg.triangular_inverses(scale_tril).swapaxes(-1, -2),
    )


def _moments(
    statistics: Statistics, parameters: Parameters, samples: Samples, regularisation: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Those of `Formulation.gradient`; ``regularisation`` [K, D, D] is added to the second ones."""
    shift = parameters.means - statistics.about
    counts, firsts = statistics.counts, statistics.firsts
    seconds = samples.family.translate(statistics.seconds, counts, firsts, shift)
    firsts = firsts - counts[:, None] * shift
    factors, total = parameters.precisions_cholesky, float(statistics.n_samples)
    transposed = factors.swapaxes(-1, -2)
    whitened = transposed @ (seconds / total + regularisation) @ factors
    return counts / total, (transposed @ firsts[..., None])[..., 0] / total, whitened


def _log_weights(parameters: Parameters) -> FloatArray:
    return np.log(np.maximum(parameters.weights, SMALLEST_WEIGHT))


def _scale_tril(parameters: Parameters) -> FloatArray:
    """Lower triangular factors of the covariances, [K, D, D], of those of the precisions: there
    the digits of tight components are."""
    return linalg.triangular_inverses(parameters.precisions_cholesky.swapaxes(-1, -2))


FORMULATIONS = {"augmented": Augmented, "naive": Naive}
