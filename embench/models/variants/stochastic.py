"""EM by drawn assignments or by parts of the samples: steps that are cheap, or that jump.

| model | what a step sees | what it keeps |
|---|---|---|
| `StochasticEM` | all samples, assigned by lot | nothing |
| `IncrementalEM` | one block | the statistics of every block |
| `OnlineEM`, `MiniBatchEM` | one batch | a running average of statistics |
| `VarianceReducedEM` | one batch, now and at the last full pass | both |

An iteration is a pass over the samples. Where the mixture changes during the pass, the
log-likelihood that goes with it is that of each sample under the mixture that met it: an estimate,
and ``tol`` compares two of those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial, reduce
from itertools import accumulate, count, repeat
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from embench.models.em import FORGETTING
from embench.models.engine import (
    IllDefinedCovariance,
    Parameters,
    Samples,
    Statistics,
    softmax,
)
from embench.models.steps import MixtureByEM

BATCH_SIZE = 256
"""Samples per batch: enough that the kernels, not the calls, take the time."""

AT_LEAST_ONE = [Interval(Integral, 1, None, closed="left")]
SHARE = [Interval(Real, 0, 1, closed="right")]


class StochasticEM(MixtureByEM):
    """Stochastic EM: every sample is assigned to one component by lot.

    Draws z_i from the responsibilities r_ik = w_k N(x_i; mu_k, S_k) / sum_j w_j N(x_i; mu_j, S_j)
    and takes the moments of the parts. The mixtures form a Markov chain around the maxima of the
    likelihood, with a spread of order 1 / sqrt(n_samples), and can leave poor maxima.

    Leaves out an end: the chain does not converge, and where ``tol`` stops it, two likelihoods
    happened to be near; ``tol=0`` gives a chain of ``max_iter`` steps. The mixture is its last
    one, not a mean. ``lower_bound_`` is the exact log-likelihood before the last step. A component
    that draws no sample stays empty. A sample is drawn as a whole, whatever its weight.

    Args:
        n_components: Number of components; it has no parameters of its own, the others are those
            of `em`.

    Source:
        Celeux and Diebolt (1985), The SEM algorithm: a probabilistic teacher algorithm derived
        from the EM algorithm for the mixture problem, section 2.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> sem = StochasticEM(n_components=2, random_state=0).fit(X)
        >>> sorted(sem.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    in_memory = True  # workers elsewhere would draw from copies of the random state

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        posterior = partial(_drawn, arrays=samples.arrays, random_state=random_state)
        while True:
            # Not `em_step`, which may ask twice: a lot must not depend on what follows from it.
            statistics = samples.e_step(parameters, posterior)
            parameters = samples.m_step(statistics, parameters, self.reg_covar)
            yield float(statistics.log_likelihood), parameters


class IncrementalEM(MixtureByEM):
    """Incremental EM: blocks of samples in turn, each renews its share of the statistics.

    The samples are split at random into blocks whose statistics s_b are kept. A step takes those
    of one block anew and maximises their sum: s <- s - s_b + s_b(theta), theta <- M(s). Every step
    raises the free energy of Neal and Hinton, so it converges like EM and to the same maxima, in
    fewer passes: later blocks profit from earlier ones. The first iteration is an EM step, which
    fills the blocks; every other one is a sweep over them. One block is EM.

    ``lower_bound_`` is the mean log-likelihood of every sample under the mixture that its block
    met in the last sweep: an estimate until the mixture rests, and then exact.

    Args:
        n_blocks: Number of blocks, at least 1, at most one for each sample. Costs memory for the
            statistics of every block, and an M-step each; the others are those of `em`.

    Source:
        Neal and Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and
        other variants, section 4.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> incremental = IncrementalEM(n_components=2, n_blocks=2, random_state=0).fit(X)
        >>> sorted(incremental.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    in_memory = True

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "n_blocks": AT_LEAST_ONE,
    }

    def __init__(self, n_components: int = 1, *, n_blocks: int = 10, **common: Any) -> None:
        super().__init__(n_components, **common)
        self.n_blocks = n_blocks

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        combine = samples.family.combine
        blocks = list(_parts(samples, self.n_blocks, random_state))
        kept = [block.e_step(parameters) for block in blocks]
        total = reduce(combine, kept)
        parameters = samples.m_step(total, parameters, self.reg_covar)
        while True:
            yield float(total.log_likelihood), parameters
            total = kept[0].scaled(0.0)
            # Sums of what is still to come: adding up loses no digits, taking away would.
            rests = list(accumulate(kept[::-1], combine, initial=total))
            for i, block in enumerate(blocks):
                kept[i] = block.e_step(parameters)
                total = combine(kept[i], total)
                whole = combine(total, rests[-2 - i])
                parameters = samples.m_step(whole, parameters, self.reg_covar)


class OnlineEM(MixtureByEM):
    """Stepwise EM: a running average of the statistics of small batches, with shrinking steps.

    s <- (1 - eta_t) s + eta_t s_batch(theta), theta <- M(s), with eta_t = (t + 2)^-exponent for
    t = 0, 1, ..., over batches in random order. It begins with the statistics that the start
    itself expects, so a small first batch cannot make components collapse. Early steps are long:
    the first pass gets further than many of EM's, the last digits take many passes.

    Leaves out the exact optimum for any finite number of passes: what is left shrinks with
    eta_t. ``lower_bound_`` is an estimate: the mean log-likelihood of every sample in the last
    pass under the mixture that met it.

    Args:
        batch_size: Samples per step, at least 1.
        exponent: Of the step size, in (0.5, 1]; small ones forget the start sooner and are
            noisier. The others are those of `em`.

    Source:
        Cappe and Moulines (2009), On-line expectation-maximization algorithm for latent data
        models, section 2; Liang and Klein (2009), Online EM for unsupervised models, section 3.

    Example:
        >>> X = np.random.default_rng(0).normal([[10.0], [20.0]], size=(2, 500)).reshape(-1, 1)
        >>> online = OnlineEM(n_components=2, random_state=0).fit(X)
        >>> sorted(online.means_[:, 0].round(0).tolist())
        [10.0, 20.0]
    """

    in_memory = True

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "batch_size": AT_LEAST_ONE,
        "exponent": [Interval(Real, 0.5, 1, closed="right")],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        batch_size: int = BATCH_SIZE,
        exponent: float = FORGETTING,
        **common: Any,
    ) -> None:
        super().__init__(n_components, **common)
        self.batch_size = batch_size
        self.exponent = exponent

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        steps = ((t + 2) ** -self.exponent for t in count())
        return _stepwise(samples, parameters, steps, self.batch_size, self.reg_covar, random_state)


class MiniBatchEM(MixtureByEM):
    """Mini-batch EM: a running average of the statistics of small batches, with equal steps.

    s <- (1 - step) s + step s_batch(theta), theta <- M(s), over batches in random order, beginning
    with the statistics that the start itself expects. A step of 1 with all samples in one batch is
    EM.

    Leaves out convergence: equal steps never forget that a batch is a sample, and the mixture
    wanders about the optimum within a distance of order sqrt(step / batch_size). ``tol`` stops it
    where two passes are alike. ``lower_bound_`` is an estimate: the mean log-likelihood of every
    sample in the last pass under the mixture that met it.

    Args:
        batch_size: Samples per step, at least 1.
        step: Share of a batch in the average, in (0, 1]; the others are those of `em`.

    Source:
        Nguyen, Forbes and McLachlan (2020), Mini-batch learning of exponential family finite
        mixture models, section 2 (with a constant gain).

    Example:
        >>> X = np.random.default_rng(0).normal([[10.0], [20.0]], size=(2, 500)).reshape(-1, 1)
        >>> mini = MiniBatchEM(n_components=2, random_state=0).fit(X)
        >>> sorted(mini.means_[:, 0].round(0).tolist())
        [10.0, 20.0]
    """

    in_memory = True

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "batch_size": AT_LEAST_ONE,
        "step": SHARE,
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        batch_size: int = BATCH_SIZE,
        step: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(n_components, **common)
        self.batch_size = batch_size
        self.step = step

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        steps = repeat(self.step)
        return _stepwise(samples, parameters, steps, self.batch_size, self.reg_covar, random_state)


class VarianceReducedEM(MiniBatchEM):
    """Mini-batch EM with the noise of a batch corrected by a full pass in every iteration (sEM-VR).

    An iteration takes the statistics S of all samples under its first mixture, theta_0, and then
    for each batch s <- (1 - step) s + step (s_batch(theta) - s_batch(theta_0) + S), theta <- M(s).
    The correction has mean zero and grows more exact as the mixture comes to rest: unlike other
    mini-batch steps, equal ones converge to EM's fixed points. An iteration costs three E-steps of
    all samples. A step of 1 with all samples in one batch is EM.

    Leaves out the correction where the statistics with it belong to no mixture (a negative count,
    a covariance that is not positive definite), as happens to small components after long steps.
    ``lower_bound_`` is the exact log-likelihood before the last iteration.

    Args:
        batch_size: Samples per step, at least 1.
        step: Share of a batch in the average, in (0, 1]; the others are those of `em`.

    Source:
        Chen, Zhu, Teh and Zhang (2018), Stochastic expectation maximization with variance
        reduction, section 3.

    Example:
        >>> X = np.random.default_rng(0).normal([[10.0], [20.0]], size=(2, 500)).reshape(-1, 1)
        >>> reduced = VarianceReducedEM(n_components=2, random_state=0).fit(X)
        >>> sorted(reduced.means_[:, 0].round(0).tolist())
        [10.0, 20.0]
    """

    def __init__(self, n_components: int = 1, *, step: float = 0.5, **common: Any) -> None:
        super().__init__(n_components, step=step, **common)

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        combine, average = samples.family.combine, None
        while True:
            first, full = parameters, samples.e_step(parameters)
            average = full if average is None else average
            for batch in _batches(samples, self.batch_size, random_state):
                _, plain = _averaged(samples, batch, parameters, average, self.step)
                then = batch.e_step(first).scaled(self.step * samples.n_samples / batch.n_samples)
                corrected = combine(combine(plain, then, -1.0), full, self.step)
                average, parameters = self._maximised(samples, corrected, plain, parameters)
            yield float(full.log_likelihood), parameters

    def _maximised(
        self, samples: Samples, corrected: Statistics, plain: Statistics, parameters: Parameters
    ) -> tuple[Statistics, Parameters]:
        """The statistics used, and their mixture: the corrected ones if they belong to one."""
        if (corrected.counts >= 0).all():
            with suppress(IllDefinedCovariance):
                fitted = samples.m_step(corrected, parameters, self.reg_covar, mend=False)
                return corrected, fitted
        return plain, samples.m_step(plain, parameters, self.reg_covar)


def _stepwise(
    samples: Samples,
    parameters: Parameters,
    steps: Iterator[float],
    batch_size: int,
    reg_covar: float,
    random_state: np.random.RandomState,
) -> Iterator[tuple[float, Parameters]]:
    """A running average of the statistics of batches, each with the next of the step sizes."""
    average = samples.expected(parameters, reg_covar)
    while True:
        total = 0.0
        for batch in _batches(samples, batch_size, random_state):
            statistics, average = _averaged(samples, batch, parameters, average, next(steps))
            parameters = samples.m_step(average, parameters, reg_covar)
            total += float(statistics.total_log_likelihood)
        yield total / float(samples.total_weight), parameters


def _drawn(log_joint: Any, xp: Any, arrays: Any, random_state: Any) -> tuple[Any, Any]:
    """Log-density [..., n], and 1 at the component drawn [..., K, n], in place."""
    log_density, resp = softmax(log_joint, xp)
    # Below 1 by what rounding to the arrays' precision cannot close.
    uniform = arrays.of(random_state.uniform(high=1 - arrays.eps, size=tuple(log_density.shape)))
    summed = xp.cumsum(resp, -2)
    summed[...] = summed > (uniform * summed[..., -1, :])[..., None, :]
    resp[..., 0, :] = summed[..., 0, :]
    resp[..., 1:, :] = summed[..., 1:, :] - summed[..., :-1, :]
    return log_density, resp


def _parts(
    samples: Samples, n_parts: int, random_state: np.random.RandomState
) -> Iterator[Samples]:
    """The samples in random order, in parts of nearly the same size."""
    order = random_state.permutation(samples.n_samples)
    return map(samples.take, np.array_split(order, min(n_parts, samples.n_samples)))


def _batches(
    samples: Samples, batch_size: int, random_state: np.random.RandomState
) -> Iterator[Samples]:
    """All samples in random order, in batches of nearly this size."""
    return _parts(samples, max(1, round(samples.n_samples / batch_size)), random_state)


def _averaged(
    samples: Samples, batch: Samples, parameters: Parameters, average: Statistics, step: float
) -> tuple[Statistics, Statistics]:
    """The statistics of a batch, and the running average that holds a share of them.

    In the average a batch stands for all samples, however much its own weigh.
    """
    statistics = batch.e_step(parameters)
    share = statistics.scaled(step * samples.n_samples / batch.n_samples)
    return statistics, samples.family.combine(share, average, 1 - step)
