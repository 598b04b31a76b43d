"""``student-t-em`` and ``noise-em``: mixtures that outliers do not pull out of shape.

Neither is a Gaussian mixture, so neither has a `mixture_` for the judge nor begins at one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, digamma, gammaln, logsumexp
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from embench.models import engine, families, streams
from embench.models.engine import Frame, Parameters, Samples, softmax
from embench.models.engine.arrays import to_numpy
from embench.models.steps import DensityByEM, Run
from embench.types import FloatArray, IntArray

DOF_RANGE = (0.1, 1e6)
"""Where degrees of freedom are estimated: below, a density is a spike on tails; above, a Gaussian
to more digits than data have."""


class _Extended(Parameters):
    """Parameters and what a robust mixture has beyond them: ``extra``."""

    extra: FloatArray

    def __new__(cls, parameters: Parameters, extra: FloatArray) -> _Extended:
        extended = super().__new__(cls, *parameters)
        extended.extra = extra
        return extended


class _RobustMixture(DensityByEM):
    """A mixture that is not Gaussian: it has no `mixture_`, and cannot begin at one."""

    in_memory = True

    @abstractmethod
    def _expose_extra(self, extra: FloatArray) -> None:
        """Set the fitted attributes that go beyond a Gaussian mixture's."""

    def _expose(self, run: Run, frame: Frame, dtype: str) -> None:
        super()._expose(run, frame, dtype)
        if isinstance(run.parameters, _Extended):  # at a start they are there already
            self._expose_extra(run.parameters.extra)

    def _gaussian_samples(
        self, labels: IntArray, random_state: np.random.RandomState
    ) -> FloatArray:
        """A draw from each sample's component about its mean, (n_samples, n_features) [u]."""
        mixture = families.mixture(
            self.weights_, self.means_, self.covariances_, self.covariance_type
        )
        white = random_state.standard_normal((len(labels), mixture.n_features, 1))
        return (np.linalg.cholesky(mixture.covariances)[labels] @ white)[..., 0]


class StudentTEM(_RobustMixture):
    """EM for mixtures of Student's t: samples in the tails count less.

    Maximises the mean log-likelihood 1/n sum_i log sum_k w_k t(x_i; mu_k, S_k, nu_k). With
    d^2 = (x - mu)' S^-1 (x - mu), a sample's share in the moments of a component is its
    responsibility times (nu + n_features) / (nu + d^2); counts are sums of responsibilities.

    ``covariances_`` holds the scale matrices S_k: the covariance of a component is
    nu / (nu - 2) S_k, and infinite for nu <= 2. Leaves out the division of S_k by the sum of the
    shares (Kent, Tyler and Vardi, 1994), which has the same fixed points and reaches them sooner
    but holds for a tied covariance only where all nu are equal. No Gaussian mixture: `mixture_`
    and `start_from` are missing; a start of ``*_init`` is a start of the scale matrices.

    Args:
        dof: Degrees of freedom nu > 0, of every component at the start: the smaller, the heavier
            the tails; 1e8 is `em`.
        estimate_dof: Whether each component finds its own nu, between 0.1 and 1e6; ``dof_``,
            (n_components,), holds what was found.

    The others are those of `em`.

    Source:
        Peel and McLachlan (2000), Robust mixture modelling using the t distribution, Statistics
        and Computing 10, eq. 14 to 20.

    Example:
        >>> X = np.vstack([np.random.default_rng(0).normal(size=(50, 2)), [[1000, 1000]]])
        >>> bool(np.abs(StudentTEM().fit(X).means_).max() < 0.5)
        True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **DensityByEM._parameter_constraints,
        "dof": [Interval(Real, 0, None, closed="neither")],
        "estimate_dof": ["boolean"],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        dof: float = 4.0,
        estimate_dof: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(n_components, **common)
        self.dof = dof
        self.estimate_dof = estimate_dof

    def _start(self, *data: Any) -> Parameters:
        self.dof_ = np.full(self.n_components, float(self.dof))
        return super()._start(*data)

    def _expose_extra(self, extra: FloatArray) -> None:
        self.dof_ = extra

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        dof = self.dof_
        while True:
            posterior = _StudentPosterior(samples, parameters, dof)
            unweighted = parameters._replace(weights=np.ones_like(parameters.weights))
            statistics = samples.e_step(unweighted, posterior)
            # Moments about the new means, so that they can be divided by other sums than the means.
            shift = statistics.firsts / (statistics.counts + engine.family.COUNT_FLOOR)[:, None]
            statistics = statistics._replace(
                counts=posterior.counts,
                firsts=np.zeros_like(shift),
                seconds=samples.family.translate(
                    statistics.seconds, statistics.counts, statistics.firsts, shift
                ),
                about=statistics.about + shift,
            )
            parameters = samples.m_step(statistics, parameters, self.reg_covar)
            if self.estimate_dof:
                dof = posterior.best_dof()
            yield float(statistics.log_likelihood), _Extended(parameters, dof)

    def _estimate_weighted_log_prob(self, X: FloatArray, xp: Any = None) -> FloatArray:
        parameters, family = self._parameters(), self._family
        unweighted = parameters._replace(weights=np.ones_like(parameters.weights))
        log_prob = engine.log_joint(
            X, unweighted, family, dtype=self._precision_for(X), device=self._device()
        )
        peaks = family.constant(unweighted, np.zeros(()))
        distance = _squared_distance(log_prob, peaks[:, None])
        n_features = parameters.means.shape[1]
        peaks = peaks + np.log(parameters.weights) + _log_peak(self.dof_, n_features)
        return _student_log_joint(distance, peaks[:, None], self.dof_[:, None], n_features, np).T

    def _n_parameters(self) -> int:
        return super()._n_parameters() + (len(self.dof_) if self.estimate_dof else 0)

    def sample(self, n_samples: int = 1) -> tuple[FloatArray, IntArray]:
        """Draw X (n_samples, n_features) [u] and the components it comes from, in their order."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"expected n_samples >= 1, got {n_samples}")
        random_state = check_random_state(self.random_state)
        shares = np.asarray(self.weights_, dtype=np.float64)
        counts = random_state.multinomial(n_samples, shares / shares.sum())
        labels = np.repeat(np.arange(len(counts)), counts)
        dof = self.dof_[labels]
        stretch = np.sqrt(dof / random_state.chisquare(dof))[:, None]
        return self.means_[labels] + stretch * self._gaussian_samples(labels, random_state), labels


class _StudentPosterior:
    """What an E-step makes of log-densities under t distributions.

    It returns responsibilities times ``u`` for the moments, and adds up what else an M-step needs,
    times the sample weights: ``counts`` [K], the responsibilities, and ``slacks`` [K], these times
    u - log u - 1. The engine shows it all samples in their order.
    """

    def __init__(self, samples: Samples, parameters: Parameters, dof: FloatArray) -> None:
        of, n_features = samples.arrays.of, samples.n_features
        weights = parameters.weights
        unweighted = parameters._replace(weights=np.ones_like(weights))
        peaks = samples.family.constant(unweighted, samples.frame.log_scale)
        self.dof, self.n_features, self.sample_weight = dof, n_features, samples.weights
        self.gaussian_peaks, self.nu = of(peaks[:, None]), of(dof[:, None])
        with np.errstate(divide="ignore"):
            self.peaks = of((peaks + np.log(weights) + _log_peak(dof, n_features))[:, None])
        self.counts, self.slacks = np.zeros_like(dof), np.zeros_like(dof)
        self.seen = 0

    def __call__(self, log_prob: Any, xp: Any) -> tuple[Any, Any]:
        distance = _squared_distance(log_prob, self.gaussian_peaks)
        joint = _student_log_joint(distance, self.peaks, self.nu, self.n_features, xp)
        log_density, resp = softmax(joint, xp)
        u = (self.nu + self.n_features) / (self.nu + distance)
        counted = resp
        if self.sample_weight is not None:
            counted = resp * self.sample_weight[self.seen : self.seen + resp.shape[-1]]
        self.counts += to_numpy(counted.sum(-1))
        self.slacks += to_numpy((counted * (u - 1 - xp.log(u))).sum(-1))
        self.seen += resp.shape[-1]
        return log_density, resp * u

    def best_dof(self) -> FloatArray:
        """Degrees of freedom that maximise the expected log-likelihood, [K]."""
        half = (self.dof + self.n_features) / 2
        slacks = self.slacks / (self.counts + engine.family.COUNT_FLOOR)
        return np.array([_solved(slack) for slack in slacks + np.log(half) - digamma(half)])


def _solved(slack: float) -> float:
    """The nu for which log(nu / 2) - digamma(nu / 2) is ``slack``, or the end of the range next to
    it: the left side falls from infinity to 0."""

    def excess(log_nu: float) -> float:
        half = np.exp(log_nu) / 2
        return float(np.log(half) - digamma(half) - slack)

    low, high = np.log(DOF_RANGE)
    if excess(high) >= 0:
        return DOF_RANGE[1]
    if excess(low) <= 0:
        return DOF_RANGE[0]
    return float(np.exp(brentq(excess, low, high)))


def _squared_distance(log_prob: Any, peaks: Any) -> Any:
    """Squared Mahalanobis distances of Gaussian log-densities [K, n] from their peaks [K, 1]."""
    return (2 * (peaks - log_prob)).clip(0)


def _student_log_joint(distance: Any, peaks: Any, dof: Any, n_features: int, xp: Any) -> Any:
    """Log of weight times t density, [K, n] [nat]."""
    return peaks - (dof + n_features) / 2 * xp.log1p(distance / dof)


def _log_peak(dof: FloatArray, n_features: int) -> FloatArray:
    """Log-ratio of the peaks of a t distribution and of a Gaussian with its scale matrix."""
    half = n_features / 2
    return gammaln(half) - betaln(dof / 2, half) - half * np.log(dof / 2)


class NoiseEM(_RobustMixture):
    """EM for a Gaussian mixture in uniform noise, which takes the outliers.

    Maximises the mean log-likelihood 1/n sum_i log(w_0 / V + sum_k w_k N(x_i; mu_k, S_k)), where V
    [u^n_features] is the volume of the box that bounds the training samples. Outside the box there
    is no noise. Leaves out other estimates of V, such as that of the convex hull. No Gaussian
    mixture: `mixture_` and `start_from` are missing.

    ``weights_`` sums to 1 - ``noise_weight_``; `predict` and `predict_proba` give the component of
    a sample as if it were no noise, `predict_noise` the probability that it is, and `sample` labels
    noise -1.

    Args:
        noise_weight: w_0 in [0, 1) at the start; 0 stays 0 and is `em`.

    The others are those of `em`. Further attributes: ``noise_weight_``, ``noise_log_density_``
    = -log V [nat], ``noise_box_`` (2, n_features) [u], its lowest and highest corner.

    Raises:
        ValueError: A feature does not vary, so that the box has no volume.

    Source:
        Banfield and Raftery (1993), Biometrics 49, section 4; Fraley and Raftery (1998), The
        Computer Journal 41(8), section 5.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = np.vstack([rng.normal(size=(300, 2)), rng.uniform(-20, 20, size=(75, 2))])
        >>> NoiseEM(random_state=0, max_iter=200).fit(X).noise_weight_.round(1).item()
        0.2
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **DensityByEM._parameter_constraints,
        "noise_weight": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(self, n_components: int = 1, *, noise_weight: float = 0.05, **common: Any) -> None:
        super().__init__(n_components, **common)
        self.noise_weight = noise_weight

    def _validated(
        self, X: FloatArray, sample_weight: FloatArray | None, **how: Any
    ) -> tuple[FloatArray, FloatArray | None]:
        X, sample_weight = super()._validated(X, sample_weight, **how)
        counted = X if sample_weight is None else X[sample_weight > 0]
        self.noise_box_ = np.stack([counted.min(axis=0), counted.max(axis=0)])
        sides = np.ptp(self.noise_box_.astype(np.float64), axis=0)
        if not sides.all():
            raise ValueError(
                f"expected features that vary, but feature {sides.argmin()} is "
                f"{counted[0, sides.argmin()]:g} in all {len(counted)} samples: noise needs a box "
                "with a volume"
            )
        self.noise_log_density_ = -float(np.log(sides).sum())
        return X, sample_weight

    def _start(self, *data: Any) -> Parameters:
        self.noise_weight_ = np.asarray(self.noise_weight, dtype=np.float64)
        start = super()._start(*data)
        return start._replace(weights=(1 - self.noise_weight_) * start.weights)

    def _expose_extra(self, extra: FloatArray) -> None:
        self.noise_weight_ = extra

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        noise_weight = self.noise_weight_
        while True:
            noise = samples.arrays.of(_log(noise_weight) + self.noise_log_density_)

            def posterior(log_joint: Any, xp: Any, noise: Any = noise) -> tuple[Any, Any]:
                log_density, resp = softmax(log_joint, xp)
                total = xp.logaddexp(log_density, noise)
                resp *= xp.exp(log_density - total)
                return total, resp

            statistics = samples.e_step(parameters, posterior)
            parameters = samples.m_step(statistics, parameters, self.reg_covar)
            if noise_weight > 0:
                share = 1 - statistics.counts.sum() / statistics.n_samples
                # All noise would be for ever: components of no weight get no responsibilities.
                noise_weight = share.clip(0, 1 - engine.family.COUNT_FLOOR)
            weights = (1 - noise_weight) * parameters.weights
            parameters = _Extended(parameters._replace(weights=weights), noise_weight)
            yield float(statistics.log_likelihood), parameters

    def score_samples(self, X: FloatArray) -> FloatArray:
        """Log-density of each sample, noise included, (n_samples,) [nat]."""
        return streams.each_sample(lambda X: self._log_densities(X)[0], X)

    def predict_noise(self, X: FloatArray) -> FloatArray:
        """Probability that a sample is noise, (n_samples,)."""
        return streams.each_sample(self._noise_shares, X)

    def sample(self, n_samples: int = 1) -> tuple[FloatArray, IntArray]:
        """Draw X (n_samples, n_features) [u] and the components it comes from, in their order;
        noise comes last and is -1."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"expected n_samples >= 1, got {n_samples}")
        random_state = check_random_state(self.random_state)
        shares = np.append(self.weights_, self.noise_weight_).astype(np.float64)
        *counts, n_noise = random_state.multinomial(n_samples, shares / shares.sum())
        labels = np.repeat(np.arange(len(counts)), counts)
        members = self.means_[labels] + self._gaussian_samples(labels, random_state)
        noise = random_state.uniform(*self.noise_box_, size=(n_noise, members.shape[1]))
        return np.vstack([members, noise]), np.append(labels, np.full(n_noise, -1))

    def _noise_shares(self, X: FloatArray) -> FloatArray:
        log_density, log_noise = self._log_densities(X)
        return np.exp(log_noise - log_density)

    def _log_densities(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Of the whole mixture and of the noise in it, each (n_samples,) [nat]."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        low, high = self.noise_box_
        placed = X.astype(low.dtype)  # else a corner of a float32 fit may lie outside its own box
        inside = ((low <= placed) & (high >= placed)).all(axis=1)
        log_noise = np.where(inside, _log(self.noise_weight_) + self.noise_log_density_, -np.inf)
        members = logsumexp(self._estimate_weighted_log_prob(X), axis=1)
        return np.logaddexp(members, log_noise), log_noise

    def _n_parameters(self) -> int:
        return super()._n_parameters() + (1 if self.noise_weight > 0 else 0)


def _log(weight: Any) -> Any:
    """Its logarithm; that of 0 is minus infinity."""
    with np.errstate(divide="ignore"):
        return np.log(weight)
