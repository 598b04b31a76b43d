"""``em``: classical EM, a drop-in for scikit-learn's GaussianMixture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from embench.models import families
from embench.models.engine import Arrays, Frame, Parameters, Samples, Statistics
from embench.models.steps import MixtureByEM, Run, last
from embench.types import FloatArray, IntArray, Mixture

FORGETTING = 0.6
"""Exponent of the step size (t + 2)^-0.6 of `partial_fit`: in (0.5, 1] it converges; near 0.5 it
forgets a poor start soonest (Cappe and Moulines, 2009, section 3)."""


class Runs(NamedTuple):
    """Many runs side by side, in the frame.

    Shapes: ``parameters`` [R, ...]; ``lower_bounds`` [n_iter + 1, R] [nat], the first of them
    before all; ``n_iter`` and ``converged`` [R].

    A run that rests repeats its last bound.
    """

    parameters: Parameters
    lower_bounds: FloatArray
    n_iter: IntArray
    converged: NDArray[np.bool_]

    def after(
        self, moving: IntArray, bounds: FloatArray, parameters: Parameters, tol: float
    ) -> Runs:
        """One iteration on for those that are moving."""
        lower_bounds = np.vstack([self.lower_bounds, self.lower_bounds[-1]])
        lower_bounds[-1, moving] = bounds
        n_iter = self.n_iter.copy()
        n_iter[moving] += 1
        if len(moving) < len(n_iter):
            old = [part.copy() for part in self.parameters]
            for part, new in zip(old, parameters, strict=True):
                part[moving] = new
            parameters = Parameters._make(old)
        converged = self.converged.copy()
        converged[moving] = np.abs(bounds - self.lower_bounds[-1, moving]) < tol
        return Runs(parameters, lower_bounds, n_iter, converged)

    def run(self, i: int) -> Run:
        """One of them."""
        n_iter = int(self.n_iter[i])
        bounds = self.lower_bounds[: n_iter + 1, i].tolist()
        converged = bool(self.converged[i])
        return Run(_nth(self.parameters, i), bounds[-1], tuple(bounds[1:]), n_iter, converged)


class GaussianMixture(MixtureByEM):
    """Classical EM on embench's engine: float64 or float32, CPU or GPU.

    Maximises the mean log-likelihood 1/n sum_i log sum_k w_k N(x_i; mu_k, S_k) by alternating
    responsibilities and weighted moments. Constructor, attributes, starts and stopping rule are
    those of `sklearn.mixture.GaussianMixture`; from the same start both go the same way, but for a
    component that loses all its samples: it stays where it is, and does not go to the origin.
    Restarts go on side by side, at a fraction of the cost of one after another.

    Args:
        n_components: Number of components.
        covariance_type: "full", "tied", "diag", "spherical", or, beyond scikit-learn,
            "tied_spherical" (one variance for all components) or "constant" (1 [u^2]).
        tol: Ends when the mean log-likelihood rises by less [nat]; 0 runs all iterations.
        reg_covar: Added to the diagonal of every covariance [u^2]. Where a covariance is not
            positive definite all the same, more is added to it, with a warning; 0 means none, and
            then that is an error.
        max_iter: Largest number of EM iterations.
        n_init: Number of restarts; the best is kept.
        init_params: "kmeans", "k-means++", "random", "random_from_data" or "spherical", which is
            that of the same-start track: k-means++ points, the mean variance of X.
        weights_init, means_init, precisions_init: A start of your own, shapes as the fitted
            attributes; give all three.
        random_state: Seed of the start.
        warm_start: Continue from the last fit.
        verbose, verbose_interval: As in scikit-learn.
        device: "cpu", "cuda" or "auto" (cuda where there is one).
        dtype: "float64", "float32" or "auto" (that of X): precision of the passes over X.

    Attributes: ``weights_`` (n_components,), ``means_`` (n_components, n_features) [u],
    ``covariances_`` and ``precisions_`` in the shape of their family [u^2, u^-2],
    ``converged_``, ``n_iter_``, ``lower_bound_`` (before the last M-step, as in scikit-learn).

    Source:
        Dempster, Laird and Rubin (1977); Bishop (2006), section 9.2.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> em = GaussianMixture(n_components=2, random_state=0).fit(X)
        >>> sorted(em.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    def fit_many(
        self, X: FloatArray, starts: Sequence[Mixture] | None = None
    ) -> list[GaussianMixture]:
        """Fit one mixture to each of many datasets of one size, all at once.

        Args:
            X: Datasets, shape (n_problems, n_samples, n_features) [u].
            starts: Where each begins, n_problems mixtures of this family; by default each makes
                its own start.

        Returns:
            A fitted copy of this model for every dataset.

        Raises:
            ValueError: X has not three dimensions or fewer samples than components, there are not
                as many starts as datasets or they are of another shape, or ``n_init`` is not 1.

        Example:
            >>> X = np.random.default_rng(0).normal(size=(5, 100, 2))
            >>> [em.converged_ for em in GaussianMixture(2, random_state=0).fit_many(X)]
            [True, True, True, True, True]
        """
        X, family = np.asarray(X), self.covariance_type
        if X.ndim != 3 or len(X) == 0:
            raise ValueError(
                f"expected X of shape (n_problems, n_samples, n_features), got {X.shape}"
            )
        if self.n_init != 1:
            raise ValueError(f"fit_many makes one start for each dataset, got n_init={self.n_init}")
        flat, _ = self._validated(X.reshape(-1, X.shape[-1]), None)
        n_problems, n_samples, n_features = X.shape
        X = flat.reshape(n_problems, n_samples, n_features)
        if n_samples < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                f"n_samples = {n_samples} in each dataset"
            )
        if starts is None:
            random_state = check_random_state(self.random_state)
            begin = _stacked([self._start(x, None, random_state) for x in X])
        else:
            self._check_starts(starts, X)
            covariances = np.stack([families.compact(start, family) for start in starts])
            begin = Parameters(
                np.stack([start.weights for start in starts]),
                np.stack([start.means for start in starts]),
                covariances,
                self._family.precisions_cholesky(covariances),
            )
        samples = self._framed(X, None)
        ended = last(self._lockstep(samples, samples.frame.inward(begin)))
        shown = self._outward(samples.frame, ended.parameters)
        models = [copy(self) for _ in X]
        for i, model in enumerate(models):
            model.__dict__.pop("_stepwise", None)
            model._show(ended.run(i), _nth(shown, i), samples.arrays.dtype)
        self._warn_of_end(bool(ended.converged.all()), ended.parameters, samples)
        return models

    def _check_starts(self, starts: Sequence[Mixture], X: FloatArray) -> None:
        if len(starts) != len(X):
            raise ValueError(f"expected {len(X)} starts, one for each dataset, got {len(starts)}")
        shape = (self.n_components, X.shape[-1])
        for i, start in enumerate(starts):
            if start.means.shape != shape:
                raise ValueError(
                    f"expected means of shape (n_components, n_features) = {shape} in every start, "
                    f"got {start.means.shape} in start {i}"
                )

    def partial_fit(
        self, X: FloatArray, y: None = None, sample_weight: FloatArray | None = None
    ) -> Self:
        """Take one step of stepwise EM with a batch of samples.

        Statistics of the batch enter a running average with step size (t + 2)^-0.6, and the
        mixture follows from the average. It begins with the mixture that was fitted before, if
        any, and else with a start from the first batch. ``lower_bound_`` is the batch's
        log-likelihood before.

        Args:
            X: A batch, (n_samples, n_features) [u]; the first one must not be smaller than
                n_components.
            y: Ignored.
            sample_weight: As in `fit`.

        Source:
            Cappe and Moulines (2009), On-line expectation-maximization algorithm for latent data
            models.
        """
        known, first = hasattr(self, "converged_"), not hasattr(self, "_stepwise")
        X, sample_weight = self._validated(X, sample_weight, reset=not known)
        family = self._family
        if first:
            samples = self._framed(X, sample_weight)
            random_state = check_random_state(self.random_state)
            start = self._parameters() if known else self._start(X, sample_weight, random_state)
            run = Run(samples.frame.inward(start))
            average = samples.expected(run.parameters, self.reg_covar).averaged()
        else:
            run, average, frame = self._stepwise
            if (frame.family, len(run.parameters.weights)) != (family, self.n_components):
                raise ValueError(
                    "covariance_type or n_components changed since the last batch: call fit, or "
                    "partial_fit of a clone, to begin anew"
                )
            arrays = Arrays.on(self._device(), X.dtype.name)
            samples = Samples.within(frame, arrays, X, sample_weight)
        statistics = samples.e_step(run.parameters)
        # About the means of now: a sum about those of the beginning would lose its digits.
        step = 1.0 if not known else (run.n_iter + 2) ** -FORGETTING
        batch = statistics.averaged().scaled(step)
        average = family.combine(batch, average, 1 - step)
        parameters = samples.m_step(average, run.parameters, self.reg_covar)
        run = run.after(float(statistics.log_likelihood), parameters, self.tol)
        self._stepwise: tuple[Run, Statistics, Frame] = run, average, samples.frame
        self._expose(run, samples.frame, samples.arrays.dtype)
        return self

    def _runs(
        self, samples: Samples, starts: Iterator[Run], random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """Restarts side by side over the same samples, which are read once for all of them."""
        if self.n_init == 1 or self.verbose:
            yield from super()._runs(samples, starts, random_state)
            return
        for runs in self._lockstep(samples, _stacked([run.parameters for run in starts])):
            best = runs.run(int(runs.lower_bounds[-1].argmax()))
            yield best

    def _lockstep(self, samples: Samples, start: Parameters) -> Iterator[Runs]:
        """All runs at their starts and after every iteration; those that converged rest."""
        n_runs = len(start.weights)
        runs = Runs(
            start, np.full((1, n_runs), -np.inf), np.zeros(n_runs, int), np.zeros(n_runs, bool)
        )
        yield runs
        moving, parameters = np.arange(n_runs), start
        while len(moving) and len(runs.lower_bounds) <= self.max_iter:
            bounds, parameters = samples.em_step(parameters, self.reg_covar)
            runs = runs.after(moving, bounds, parameters, self.tol)
            yield runs
            still = ~runs.converged[moving]
            if not still.all():
                moving, parameters = moving[still], _nth(parameters, still)
                samples = samples.some(still) if samples.problems else samples


def _stacked(parameters: Sequence[Parameters]) -> Parameters:
    return Parameters(*(np.stack(parts) for parts in zip(*parameters, strict=True)))


def _nth(stacked: Parameters, i: Any) -> Parameters:
    return Parameters(*(part[i] for part in stacked))
