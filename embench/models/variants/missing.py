"""``missing-em``: EM for samples of which some features were not observed, given as NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from scipy.special import logsumexp
from sklearn.utils import Tags
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import (
    _check_feature_names,
    _check_sample_weight,
    check_array,
    check_is_fitted,
    validate_data,
)

from embench.models import families, streams
from embench.models.engine import (
    Arrays,
    Family,
    Frame,
    Parameters,
    Posterior,
    Samples,
    Statistics,
    softmax,
)
from embench.models.engine.family import BoolArray
from embench.models.steps import MixtureByEM
from embench.types import FloatArray, IntArray, Mixture


class MissingEM(MixtureByEM):
    """EM for data with missing values: NaN means not observed, and is never filled in.

    Maximises the mean log-likelihood 1/n sum_i log sum_k w_k N(x_i; mu_k, S_k) of what was
    observed, each density being the marginal one of the observed features. The moments of the
    others are the conditional ones given the observed, in each component. Right where values are
    missing at random: whether one is missing may depend on what was observed, not on itself.

    Leaves out samples of which nothing was observed: they say nothing. Where nothing is missing
    it goes the way of `em`. Starts are made of samples filled with the means of their features.
    Samples that miss the same features go together: an iteration costs, for each such pattern, K
    factorisations of the covariance of the observed features, and K times n_features^2 for each
    sample; passes are in float64 on the CPU, and the covariances full ones whatever the family.
    `score`, `score_samples`, `predict` and `predict_proba` take NaN, too; a sample of nothing but
    NaN has log-density 0.

    Args:
        device: "cpu" or "auto", which is the same here.

    The others are those of `em`.

    Raises:
        ValueError: A feature was never observed, or fewer samples with an observed feature than
            components.

    Source:
        Ghahramani and Jordan (1994), Supervised learning from incomplete data via an EM approach,
        section 3; Little and Rubin (2002), Statistical Analysis with Missing Data, section 11.2.

    Example:
        >>> X = np.random.default_rng(0).normal([3, -3], size=(500, 2))
        >>> X[::2, 0] = np.nan
        >>> MissingEM().fit(X).means_.round(0).tolist()
        [[3.0, -3.0]]
    """

    in_memory = True

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "device": [StrOptions({"cpu", "auto"})],
    }

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _framed(self, X: FloatArray, sample_weight: FloatArray | None) -> Samples:
        return IncompleteSamples.of(
            X,
            self._family,
            self.reg_covar,
            sample_weight=sample_weight,
            dtype=X.dtype.name,
        )

    def _start(self, X: FloatArray, *rest: Any) -> Parameters:
        return super()._start(_filled(X), *rest)

    def _validated(
        self, X: FloatArray, sample_weight: FloatArray | None, **how: Any
    ) -> tuple[FloatArray, FloatArray | None]:
        given = X
        X = check_array(X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan")
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        missing = np.isnan(X)
        if missing.all(axis=0).any():
            raise ValueError(
                f"expected features that were observed at least once, but feature "
                f"{missing.all(axis=0).argmax()} is NaN in all {len(X)} samples: leave it out"
            )
        seen = ~missing.all(axis=1)
        sample_weight = None if sample_weight is None else sample_weight[seen]
        filled, sample_weight = super()._validated(_filled(X)[seen], sample_weight, **how)
        _check_feature_names(self, given, reset=True)
        return np.where(missing[seen], filled.dtype.type(np.nan), filled), sample_weight

    def score_samples(self, X: FloatArray) -> FloatArray:
        """Log-density of what was observed of each sample, (n_samples,) [nat]."""
        return logsumexp(self._log_joint(X), axis=1)

    def predict(self, X: FloatArray) -> IntArray:
        """Most probable component given what was observed of each sample, (n_samples,)."""
        return self._log_joint(X).argmax(axis=1)

    def predict_proba(self, X: FloatArray) -> FloatArray:
        """Responsibilities given what was observed, (n_samples, n_components)."""
        log_joint = self._log_joint(X)
        return np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))

    def _log_joint(self, X: FloatArray) -> FloatArray:
        """Log of weight times marginal density, (n_samples, n_components) [nat]."""
        check_is_fitted(self)
        return streams.each_sample(self._log_joint_in_memory, X)

    def _log_joint_in_memory(self, X: FloatArray) -> FloatArray:
        X = validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite="allow-nan")
        log_joint = np.empty((len(X), len(self.weights_)))
        for observed, rows in _patterns(np.isnan(X)):
            marginal = _Marginal(self.mixture_, observed)
            log_joint[rows] = marginal.log_joint(marginal.residuals(X[rows].T)).T
        return log_joint


class IncompleteSamples(Samples):
    """Samples with NaN in Y where a feature was not observed, in a frame that mixes no features."""

    @classmethod
    def of(
        cls,
        X: FloatArray,
        family: Family,
        reg_covar: float = 1e-6,
        *,
        sample_weight: FloatArray | None = None,
        dtype: str = "float64",
        device: str = "cpu",
    ) -> Self:
        """Centre X, of shape (n_samples, n_features) [u], and scale its features."""
        variances = np.nanvar(X, axis=0, dtype=np.float64)
        mean = np.asarray(np.nanmean(X, axis=0, dtype=np.float64))
        spread = np.diag(variances) if family.is_rotated else variances
        frame, arrays = Frame.of(family, mean, spread, reg_covar), Arrays.on("cpu", dtype)
        Y = arrays.empty(X.shape[1] + 1, len(X))
        Y[:-1] = ((X - frame.centre) / frame.scales).T
        Y[-1] = 1
        # Nothing here expands a square, so nobody asks how far samples lie from the centre.
        return cls(Y, frame, arrays, sample_weight, radius_squared=math.nan)

    @cached_property
    def patterns(self) -> list[_Pattern]:
        """The samples by what was observed of them."""
        return list(_patterns(np.isnan(self.Y[:-1].T)))

    def e_step(
        self, parameters: Parameters, posterior: Posterior = softmax, **how: Any
    ) -> Statistics:
        """Expected statistics about the means, given what was observed."""
        mixture = families.mixture(*parameters[:3], self.family.name)
        total, sums = 0.0, (np.zeros_like(part) for part in vars(mixture).values())
        counts, firsts, seconds = sums
        for observed, rows in self.patterns:
            marginal = _Marginal(mixture, observed)
            residuals = marginal.residuals(self.Y[:-1, rows].astype(np.float64))
            log_joint = marginal.log_joint(residuals) - self._log_scale(observed)
            log_density, resp = posterior(log_joint, np)
            if self.weights is not None:
                log_density, resp = log_density * self.weights[rows], resp * self.weights[rows]
            expected, leftover = marginal.conditional(residuals)
            weighted = resp[:, None] * expected
            total += float(log_density.sum())
            counts += resp.sum(-1)
            firsts += weighted.sum(-1)
            seconds += weighted @ expected.swapaxes(1, 2) + resp.sum(-1)[:, None, None] * leftover
        seconds = self._of_family(seconds)
        return Statistics(
            np.asarray(total), counts, firsts, seconds, self.total_weight, mixture.means
        )

    def _log_scale(self, observed: BoolArray) -> float:
        """Log-volume of the frame's unit in the observed features."""
        return float(np.log(self.frame.scales[observed]).sum())

    def _of_family(self, seconds: FloatArray) -> FloatArray:
        """Second moments of the family, from full ones [K, D, D]."""
        own = seconds if self.family.is_rotated else np.diagonal(seconds, axis1=1, axis2=2)
        own = own.mean(axis=-1) if self.family.own_dimensions == 0 else own
        return own.sum(axis=0) if self.family.is_shared else own


class _Pattern(NamedTuple):
    """Samples of which the same features were observed: a mask [D] and their numbers [n]."""

    observed: BoolArray
    rows: IntArray


def _patterns(missing: BoolArray) -> Iterator[_Pattern]:
    """The patterns of a mask [n_samples, D]."""
    kinds, kind_of = np.unique(missing, axis=0, return_inverse=True)
    for kind, mask in enumerate(kinds):
        yield _Pattern(~mask, np.flatnonzero(kind_of.ravel() == kind))


class _Marginal:
    """A mixture, of full covariances [K, D, D], seen through the observed features [D]."""

    def __init__(self, mixture: Mixture, observed: BoolArray) -> None:
        self.mixture, self.observed = mixture, observed
        self.across = mixture.covariances[:, :, observed]
        own = self.across[:, observed]
        self.scale_tril = np.linalg.cholesky(own)
        self.hidden = self.across[:, ~observed]
        self.regression = np.linalg.solve(own, self.hidden.swapaxes(1, 2)).swapaxes(1, 2)

    def residuals(self, Y: FloatArray) -> FloatArray:
        """What was observed of Y [D, n], minus the means: [K, n_observed, n]."""
        return Y[self.observed] - self.mixture.means[:, self.observed, None]

    def log_joint(self, residuals: FloatArray) -> FloatArray:
        """Log of weight times density of what was observed, [K, n] [nat]."""
        white = np.linalg.solve(self.scale_tril, residuals)
        log_det = np.log(np.diagonal(self.scale_tril, axis1=1, axis2=2)).sum(-1)
        with np.errstate(divide="ignore"):
            peaks = np.log(self.mixture.weights) - log_det
        peaks -= self.observed.sum() / 2 * math.log(2 * math.pi)
        return peaks[:, None] - np.square(white).sum(axis=1) / 2

    def conditional(self, residuals: FloatArray) -> tuple[FloatArray, FloatArray]:
        """All features given the observed: their means minus the component's [K, D, n], and their
        covariances [K, D, D], which are 0 where observed."""
        K, D = self.mixture.means.shape
        expected = np.empty((K, D, residuals.shape[-1]))
        expected[:, self.observed] = residuals
        expected[:, ~self.observed] = self.regression @ residuals
        leftover = np.zeros((K, D, D))
        missing = np.ix_(np.arange(K), ~self.observed, ~self.observed)
        explained = self.regression @ self.hidden.swapaxes(1, 2)
        leftover[missing] = self.mixture.covariances[missing] - explained
        return expected, leftover


def _filled(X: FloatArray) -> FloatArray:
    """X with the mean of its feature where a value is missing."""
    return np.where(np.isnan(X), np.nanmean(X, axis=0, dtype=np.float64).astype(X.dtype), X)
