"""``figueiredo-jain``: begins with too many components, ends with as many as pay for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from embench.models.engine import Parameters, Samples, softmax
from embench.models.engine.arrays import to_numpy
from embench.models.steps import MixtureByEM, Run
from embench.types import FloatArray, IntArray

START_NARROWER = 10
"""Variance of the data over that of a component at the start: the paper's, section 6.1."""


class FigueiredoJainEM(MixtureByEM):
    """Component-wise EM that finds the number of components by the shortest message.

    Minimises the message length

        L = P/2 sum_k log w_k + K (P + 1) / 2 log n - log-likelihood  [nat]

    with P parameters and weight w_k per component and n samples. One iteration goes through the
    components. Each gets, from its count N_k, the weight max(0, N_k - P/2), divided by the sum of
    these over all components, and mean and covariance from its moments; with weight 0 it is
    removed. When L rests, the weakest component is forced out, and so on down to a single one: the
    mixture of the shortest message is kept.

    Leaves out the gain of (log 12 - 1) (P + 1) / 2 nat that the paper's eq. 15 grants to every
    component, as its authors' program does: with it, handfuls of samples became components here.
    Leaves out what a tied covariance costs, which is the same for every number of components; it
    is updated once per iteration. An iteration costs K passes over the samples for one component
    and K softmaxes over all.

    Args:
        n_components: The largest number of components; ``n_components_`` says how many were found.
        tol: Ends the way of one number of components when L / n_samples changes by less [nat];
            finer than in `em`, as a component forced out too early does not come back.
        max_iter: Largest number of iterations, all numbers of components together.

    The others are those of `em`; of ``init_params`` only the means are used, and components begin
    with equal weights and a tenth of the data's variances. The fitted attributes have
    ``n_components_`` components, and ``lower_bound_`` is -L / n_samples.

    Source:
        Figueiredo and Jain (2002), Unsupervised learning of finite mixture models, IEEE PAMI
        24(3), eq. 15 and 17 and figure 2.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(300, 1))
        >>> X[:100] += 20
        >>> FigueiredoJainEM(n_components=8, random_state=0).fit(X).n_components_
        2
    """

    in_memory = True

    def __init__(
        self, n_components: int = 1, *, tol: float = 1e-5, max_iter: int = 1000, **common: Any
    ) -> None:
        super().__init__(n_components, tol=tol, max_iter=max_iter, **common)

    @property
    def n_components_(self) -> int:
        """Number of components that were found."""
        return len(self.weights_)

    def _start(self, X: FloatArray, *rest: Any) -> Parameters:
        """Components alike and wide, so that none begins as a handful of samples."""
        start = super()._start(X, *rest)
        family = self._family
        if self.precisions_init is not None or not family.is_learned:
            return start
        variances = X.var(axis=0, dtype=np.float64) / START_NARROWER + self.reg_covar
        if family.own_dimensions == 0:
            variances = variances.mean(keepdims=True)[0]
        one = np.diag(variances) if family.is_rotated else variances
        covariances = np.empty_like(start.covariances)
        covariances[...] = one
        factors = family.precisions_cholesky(covariances)
        weights = np.ones_like(start.weights) if self.weights_init is None else start.weights
        return Parameters(weights / weights.sum(), start.means, covariances, factors)

    def _iterated(
        self, samples: Samples, run: Run, random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """One number of components after another; shown is the shortest message so far."""
        best: Run | None = None
        while True:
            for after in super()._iterated(samples, run, random_state):
                run = after
                shown = best if best and best.lower_bound >= run.lower_bound else run
                n_left = len(run.parameters.weights)
                yield shown._replace(converged=run.converged and n_left == 1)
            if not run.converged or n_left == 1:
                return
            best = shown
            others = np.delete(np.arange(n_left), run.parameters.weights.argmin())
            run = Run(
                _some(samples, run.parameters, others),
                lower_bounds=run.lower_bounds,
                n_iter=run.n_iter,
            )

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        sample_weight = 1.0 if samples.weights is None else to_numpy(samples.weights)
        while True:
            parameters = Parameters(*(part.copy() for part in parameters))
            log_prob = _log_prob(samples, parameters)
            total = (_posterior(log_prob, parameters)[0] * sample_weight).sum()
            length = _code_length(samples, parameters) - total
            k = 0
            while k < len(log_prob):
                resp = _posterior(log_prob, parameters)[1] * sample_weight
                worth = np.maximum(0, resp.sum(1) - _own_parameters(samples) / 2)
                if worth[k] == 0 and len(worth) > 1:
                    parameters = _some(samples, parameters, np.delete(np.arange(len(worth)), k))
                    log_prob = np.delete(log_prob, k, axis=0)
                    continue
                if len(worth) > 1:
                    parameters.weights[k] = worth[k] / worth.sum()
                    parameters.weights[:] /= parameters.weights.sum()
                log_prob[k] = self._update(samples, parameters, k, resp[k])
                k += 1
            if samples.family.is_shared:
                _, after = samples.em_step(parameters, self.reg_covar)
                parameters = after._replace(weights=parameters.weights)
            yield -length / float(samples.total_weight), parameters

    def _update(
        self, samples: Samples, parameters: Parameters, k: int, resp: FloatArray
    ) -> FloatArray:
        """Put a component's new mean and covariance in place: an EM step of that component alone
        on samples that count as much as they are its own. Returns its log-density [n_samples]."""
        own = Samples(
            samples.Y,
            samples.frame,
            samples.arrays,
            samples.arrays.of(resp),
            samples.radius_squared,
        )
        before = _some(samples, parameters, np.array([k]))
        _, after = own.em_step(before, self.reg_covar)
        parameters.means[k] = after.means[0]
        if not samples.family.is_shared:
            parameters.covariances[k] = after.covariances[0]
            parameters.precisions_cholesky[k] = after.precisions_cholesky[0]
        return samples.log_joint(_some(samples, parameters, np.array([k])))[0]


def _log_prob(samples: Samples, parameters: Parameters) -> FloatArray:
    """Log-densities without weights, [K, n_samples] [nat]."""
    return samples.log_joint(parameters._replace(weights=np.ones_like(parameters.weights)))


def _posterior(log_prob: FloatArray, parameters: Parameters) -> tuple[FloatArray, FloatArray]:
    """Log-density [n_samples] and responsibilities [K, n_samples]."""
    return softmax(log_prob + np.log(parameters.weights)[:, None], np)


def _code_length(samples: Samples, parameters: Parameters) -> float:
    """Message length of the parameters alone [nat]: L plus the log-likelihood."""
    n_own, weights = _own_parameters(samples), parameters.weights
    of_number = len(weights) * (n_own + 1) / 2 * np.log(samples.total_weight)
    return float(n_own / 2 * np.log(weights).sum() + of_number)


def _own_parameters(samples: Samples) -> int:
    """Number of free numbers in the mean and covariance of one component more."""
    one, two = (samples.family.n_parameters(K, samples.n_features) for K in (1, 2))
    return samples.n_features + two - one


def _some(samples: Samples, parameters: Parameters, components: IntArray) -> Parameters:
    """A mixture of some of the components."""
    weights, means, *shapes = parameters
    if not samples.family.is_shared:
        shapes = [part[components] for part in shapes]
    kept = weights[components]
    return Parameters(kept / kept.sum(), means[components], *shapes)
