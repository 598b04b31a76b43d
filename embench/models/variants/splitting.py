"""``split-merge-em``: two components on one cluster become one, and one on two becomes two."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import combinations, islice
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from embench.models.engine import IllDefinedCovariance, Parameters, Samples, softmax
from embench.models.engine.arrays import to_numpy
from embench.models.steps import MixtureByEM, Run
from embench.types import FloatArray

WORTHWHILE = 1e-4
"""A gain in the mean log-likelihood [nat] that is smaller may be the same optimum, reached from
another side."""

Triple = tuple[int, int, int]
"""Components i and j to merge, and k to split."""


class SplitMergeEM(MixtureByEM):
    """EM that merges two components and splits a third where this raises the likelihood.

    When EM has come to its end, triples i, j, k are tried in the order of how much i and j share
    their samples, then how badly k describes its own,

        J_merge(i, j) = sum_n r_ni r_nj,   J_split(k) = sum_n f_nk log(f_nk / N(x_n; mu_k, S_k)),

    with responsibilities r and f_nk = r_nk / sum_m r_mk. Components i and j become one with their
    average; k becomes two, a random step to both sides of its mean. EM goes first over these three
    and what they had of each sample, then over all. The triple is kept if the mean log-likelihood
    has then risen by more than ``tol`` and 1e-4, and new triples are tried; otherwise the mixture
    is what it was before. It ends when ``n_candidates`` triples in a row have failed.

    With fewer than three components there is nothing to try: then it is EM. Samples must be in
    memory.

    Args:
        n_candidates: Number of triples to try at each mixture, at least 0; 0 is EM.

    The others are those of `em`; ``max_iter`` bounds each of the ways of EM, and ``n_iter_`` is of
    the last that was kept.

    Source:
        Ueda, Nakano, Ghahramani and Hinton (2000), SMEM algorithm for mixture models, Neural
        Computation 12(9), eq. 3.1 to 3.4 and section 3.2; acceptance there is by the expected
        log-joint Q, which may rise where the likelihood falls.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(300, 1))
        >>> X += np.repeat([10, 30, 50], 100)[:, None]
        >>> start = dict(
        ...     weights_init=[0.4, 0.3, 0.3],
        ...     means_init=[[20.0], [49.5], [50.5]],
        ...     precisions_init=[[[0.01]], [[1.0]], [[1.0]]],
        ... )
        >>> model = SplitMergeEM(n_components=3, random_state=0, **start).fit(X)
        >>> sorted(model.means_[:, 0].round().tolist())
        [10.0, 30.0, 50.0]
    """

    in_memory = True

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "n_candidates": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, n_components: int = 1, *, n_candidates: int = 5, **common: Any) -> None:
        super().__init__(n_components, **common)
        self.n_candidates = n_candidates

    def _iterated(
        self, samples: Samples, run: Run, random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """EM's own way, then the ways of the triples; shown is the best so far."""
        best = run
        for best in super()._iterated(samples, run, random_state):
            yield best
        triples = islice(_triples(samples, best.parameters), self.n_candidates)
        while triple := next(triples, None):
            trial = yield from self._tried(samples, best, triple, random_state)
            if trial.lower_bound > best.lower_bound + max(self.tol, WORTHWHILE):
                best = trial
                yield best
                triples = islice(_triples(samples, best.parameters), self.n_candidates)

    def _tried(
        self,
        samples: Samples,
        best: Run,
        triple: Triple,
        random_state: np.random.RandomState,
    ) -> Generator[Run, None, Run]:
        """The end of EM's way with i and j merged and k split: first over these three alone, then
        over all. A covariance that becomes singular is an end without likelihood."""
        own = _samples_of(samples, best.parameters, triple)
        split = _merged_and_split(samples, best.parameters, triple, random_state)
        try:
            partial = yield from self._way(own, Run(split), best, random_state)
            whole = _put_back(samples, best.parameters, partial.parameters, triple)
            return (yield from self._way(samples, Run(whole), best, random_state))
        except IllDefinedCovariance:
            return Run(best.parameters)

    def _way(
        self, samples: Samples, run: Run, best: Run, random_state: np.random.RandomState
    ) -> Generator[Run, None, Run]:
        """The end of EM's way from a run; shown meanwhile is the best."""
        for after in super()._iterated(samples, run, random_state):
            run = after
            yield best
        return run


def _triples(samples: Samples, parameters: Parameters) -> Iterator[Triple]:
    """Components to merge, two, and to split, one; the most promising first."""
    n_components = len(parameters.weights)
    if n_components < 3:
        return
    resp, log_prob = _responsibilities(samples, parameters)
    sample_weight = 1.0 if samples.weights is None else to_numpy(samples.weights)
    shared = (resp * sample_weight) @ resp.T
    share = resp * sample_weight
    share = share / np.maximum(share.sum(1, keepdims=True), np.finfo(np.float64).tiny)
    log_share = np.log(np.maximum(share, np.finfo(np.float64).tiny))
    misfit = np.where(share > 0, share * (log_share - log_prob), 0).sum(1)
    for i, j in sorted(combinations(range(n_components), 2), key=lambda pair: -shared[pair]):
        yield from ((i, j, int(k)) for k in np.argsort(-misfit) if k not in (i, j))


def _responsibilities(samples: Samples, parameters: Parameters) -> tuple[FloatArray, FloatArray]:
    """Responsibilities and log-densities, [K, n_samples]."""
    log_joint = samples.log_joint(parameters)
    log_weights = np.log(np.maximum(parameters.weights, np.finfo(np.float64).tiny))
    return softmax(log_joint.copy(), np)[1], log_joint - log_weights[:, None]


def _samples_of(samples: Samples, parameters: Parameters, components: Triple) -> Samples:
    """All samples, each counting as much as it belongs to these components."""
    mass = _responsibilities(samples, parameters)[0][list(components)].sum(0)
    weights = samples.arrays.of(mass)
    if samples.weights is not None:
        weights = weights * samples.weights
    return Samples(samples.Y, samples.frame, samples.arrays, weights, samples.radius_squared)


def _merged_and_split(
    samples: Samples,
    parameters: Parameters,
    triple: Triple,
    random_state: np.random.RandomState,
) -> Parameters:
    """A mixture of three: i and j as one, and k twice, a random step to both sides."""
    i, j, k = triple
    weights, means, covariances, _ = parameters
    pair = weights[[i, j]] / weights[[i, j]].sum()
    step = _deviation(samples, parameters, k, random_state.standard_normal(samples.n_features))
    if not samples.family.is_shared:
        merged = np.tensordot(pair, covariances[[i, j]], axes=1)
        covariances = np.stack([merged, covariances[k], covariances[k]])
    three = np.array([weights[i] + weights[j], weights[k] / 2, weights[k] / 2])
    return Parameters(
        three / three.sum(),
        np.stack([pair @ means[[i, j]], means[k] + step, means[k] - step]),
        covariances,
        samples.family.precisions_cholesky(covariances),
    )


def _deviation(samples: Samples, parameters: Parameters, k: int, z: FloatArray) -> FloatArray:
    """``z`` in units of a component's standard deviations, as a step between samples, [D]."""
    factor = samples.family.own(parameters.precisions_cholesky, (k,))
    return np.asarray(z / factor if factor.ndim < 2 else np.linalg.solve(factor.T, z))


def _put_back(
    samples: Samples, parameters: Parameters, partial: Parameters, triple: Triple
) -> Parameters:
    """The mixture with three components replaced; a covariance of all components stays."""
    whole, three = Parameters(*(part.copy() for part in parameters)), list(triple)
    whole.weights[three] = partial.weights * parameters.weights[three].sum()
    whole.means[three] = partial.means
    if not samples.family.is_shared:
        whole.covariances[three] = partial.covariances
        whole.precisions_cholesky[three] = partial.precisions_cholesky
    return whole
