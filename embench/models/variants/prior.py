"""``map-em``: maximum a posteriori under a conjugate prior."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.special import xlogy
from sklearn.utils._param_validation import Interval

from embench.models.engine import Family, Parameters, Samples, Statistics
from embench.models.engine.family import COUNT_FLOOR
from embench.models.steps import MixtureByEM
from embench.types import FloatArray


class MapEM(MixtureByEM):
    """MAP EM: a conjugate prior keeps covariances from collapsing, without reg_covar.

    Maximises the log-likelihood plus ``prior_strength`` times the log-density of a prior: weights
    are Dirichlet(a, ..., a), S_k is inverse Wishart(nu, Psi) (inverse gamma for variances), and
    mu_k given S_k is N(m, S_k / kappa). As Fraley and Raftery have it, nu = n_features + 2, m is
    the mean of the samples and Psi their covariance over n_components^(2 / n_features), as round
    as the family, so that rescaled data give the rescaled mixture (a diagonal Psi differs from
    feature to feature, where theirs does not).

    Leaves out a full posterior: one mixture, not a distribution (`sklearn-vb` approximates that).
    ``lower_bound_`` is the mean log-likelihood plus the log-prior over n_samples, without the
    constant of the prior, of the mixture before the last M-step; it never falls.

    Args:
        prior_strength: Power of the prior, above 0: towards 0 it is EM, 2 is twice as sure.
        weight_concentration_prior: a, at least 1; 1 is flat, above it no component dies.
        mean_precision_prior: kappa, above 0: how many samples the prior mean counts for. The
            others are those of `em`; ``reg_covar`` comes on top and can be 0.

    Source:
        Fraley and Raftery (2007), Bayesian regularization for normal mixture estimation and
        model-based clustering, section 3.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> prior = MapEM(n_components=2, reg_covar=0, random_state=0).fit(X)
        >>> sorted(prior.means_[:, 0].round(1).tolist())
        [1.0, 10.0]
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "prior_strength": [Interval(Real, 0, None, closed="neither")],
        "weight_concentration_prior": [Interval(Real, 1, None, closed="left")],
        "mean_precision_prior": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        prior_strength: float = 1.0,
        weight_concentration_prior: float = 1.0,
        mean_precision_prior: float = 0.01,
        **common: Any,
    ) -> None:
        super().__init__(n_components, **common)
        self.prior_strength = prior_strength
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        prior = conjugate_prior(
            samples.family,
            *parameters.means.shape,
            strength=self.prior_strength,
            weight_concentration=self.weight_concentration_prior,
            mean_precision=self.mean_precision_prior,
        )
        family, regularisation = samples.family, samples.frame.regularisation(self.reg_covar)
        while True:
            statistics = samples.e_step(parameters)
            posterior = statistics.total_log_likelihood + _log_prior(prior, parameters, family)
            parameters = _mode(prior, statistics, family, regularisation)
            yield float(posterior / statistics.n_samples), parameters

    def _initialised(
        self,
        X: FloatArray,
        sample_weight: FloatArray | None,
        random_state: np.random.RandomState,
    ) -> Parameters:
        """scikit-learn's start, as wide as the prior where it would have a singular covariance."""
        drawn_before = random_state.get_state()
        try:
            return super()._initialised(X, sample_weight, random_state)
        except ValueError as error:
            if "ill-defined" not in str(error):
                raise
        random_state.set_state(drawn_before)
        wide, variance = copy(self), float(np.var(X, axis=0, dtype=np.float64).mean())
        wide.reg_covar = self.n_components ** (-2 / X.shape[1]) * variance
        return super(MapEM, wide)._initialised(X, sample_weight, random_state)


class Prior(NamedTuple):
    """What a prior adds: to the count of each weight, mean and covariance, and ``scale`` times
    the identity to second moments."""

    weight_counts: float
    mean_counts: float
    covariance_counts: float
    scale: float


def conjugate_prior(
    family: Family,
    n_components: int,
    n_features: int,
    *,
    strength: float = 1.0,
    weight_concentration: float = 1.0,
    mean_precision: float = 0.01,
) -> Prior:
    """That of `MapEM`, in the frame in which the samples have mean 0 and covariance 1."""
    K, D = n_components, n_features
    nu, psi = D + 2, K ** (-2 / D)
    counts, scale = {
        "full": (nu + D + 2, psi),
        "tied": (nu + D + 1 + K, psi),
        "diag": (nu + 3, psi),
        # A spherical variance counts once for every feature.
        "spherical": ((nu + 2) / D + 1, psi / D),
        "tied_spherical": ((nu + 2) / D + K, psi / D),
        # As many as the means count for: a covariance of 1 stays one.
        "constant": (K * mean_precision, 0.0),
    }[family.name]
    return Prior(
        *(strength * part for part in (weight_concentration - 1, mean_precision, counts, scale))
    )


def _log_prior(prior: Prior, parameters: Parameters, family: Family) -> float:
    """Log-density of the prior but for its constant [nat]."""
    K, D = parameters.means.shape
    factors = parameters.precisions_cholesky
    columns = parameters.means[:, :, None].copy()
    distances = sum(
        np.square(family.whiten(columns[k], family.own(factors, (k,)))).sum() for k in range(K)
    )
    return float(
        xlogy(prior.weight_counts, parameters.weights).sum()
        + prior.covariance_counts * family.log_det(factors, D).sum()
        - 0.5 * prior.scale * family.trace_of_precision(factors, D).sum()
        - 0.5 * prior.mean_counts * distances
    )


def _mode(
    prior: Prior, statistics: Statistics, family: Family, regularisation: FloatArray
) -> Parameters:
    """The mixture of the highest posterior, given responsibilities: the M-step.

    The prior of means and second moments are statistics of samples at the centre. Covariances and
    weights are divided by other counts than those.
    """
    both = family.combine(statistics, _pseudo(prior, statistics, family))
    shift = both.firsts / both.counts[:, None]
    covariances = family.covariances(both.seconds, both.counts, shift)
    own_counts = family.per_covariance(statistics.counts) + prior.covariance_counts
    ratio = family.per_covariance(both.counts) / own_counts
    covariances = ratio * covariances + regularisation
    weights = statistics.counts + prior.weight_counts + COUNT_FLOOR
    means = both.about + shift
    factors = family.precisions_cholesky(covariances)
    return Parameters(weights / weights.sum(), means, covariances, factors)


def _pseudo(prior: Prior, statistics: Statistics, family: Family) -> Statistics:
    """Statistics of the prior's samples of means and second moments."""
    D = statistics.firsts.shape[-1]
    identity = np.eye(D) if family.is_rotated else 1.0
    return Statistics(
        np.zeros(()),
        np.full_like(statistics.counts, prior.mean_counts),
        np.zeros_like(statistics.firsts),
        np.broadcast_to(prior.scale * identity, statistics.seconds.shape),
        np.zeros(()),
        np.zeros_like(statistics.about),
    )
