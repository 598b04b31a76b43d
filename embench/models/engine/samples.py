"""The passes over the samples: E-steps in chunks that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Self

import numpy as np

from embench.models.engine.arrays import Arrays, to_numpy
from embench.models.engine.chunks import mean_and_covariance, row_chunks, split
from embench.models.engine.family import (
    BoolArray,
    Family,
    IllDefinedCovariance,
    Parameters,
    Statistics,
)
from embench.models.engine.frame import Frame
from embench.models.engine.kernels import (
    NEGLIGIBLE,
    Exact,
    Posterior,
    log_joints,
    moments,
    softmax,
)
from embench.types import FloatArray

KEPT_BYTES = 2**23
"""Products of all samples that are small enough to be kept from one iteration to the next."""

CANCELLATION = {"float64": 1e-8, "float32": 0.05}
"""Bound [nat] on what expanding the squares may cost a single sample, beyond which a component's
squares are not expanded. What was seen is a tenth of the bound in the worst sample, and far less
in their mean."""

SPARSE_FROM = 32
"""Features from which the M-step may leave negligible responsibilities out: below, picking samples
costs more than multiplying them by nearly nothing."""

PRODUCTS_PER_COMPONENT = 85
"""More products of features than this for each component that uses them cost more than they save:
samples minus mean are then the faster way, too. Measured for 8 to 200 features."""

SPARSE = 0.15
"""Share of responsibilities that count, below which leaving out the others pays."""


class Samples:
    """Samples in their frame, ready for E-steps.

    Args:
        Y: Samples in the frame, [n_features + 1, n_samples] or with problems in front, last row
            ones; an array of ``arrays``.
        frame: What makes them of X.
        arrays: Where they live.
        weights: Sample weights [n_samples], an array of ``arrays``, or None for ones.
        radius_squared: Largest squared distance of a sample from the centre, where it is known.
    """

    def __init__(
        self,
        Y: Any,
        frame: Frame,
        arrays: Arrays,
        weights: Any = None,
        radius_squared: float | None = None,
    ) -> None:
        self.Y, self.frame, self.arrays, self.weights = Y, frame, arrays, weights
        self.family: Family = frame.family
        self.n_features, self.n_samples = Y.shape[-2] - 1, Y.shape[-1]
        self.radius_squared = self._largest_square() if radius_squared is None else radius_squared
        self.problems: tuple[int, ...] = tuple(Y.shape[:-2])
        self._kept: tuple[Family, Any] | None = None
        self._risky: tuple[Any, Any] = (None, None)
        self.sparse = False

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
        """Centre and whiten X, of shape ([n_problems,] n_samples, n_features) [u]."""
        mean, spread = mean_and_covariance(X, sample_weight, diagonal=not family.is_rotated)
        frame = Frame.of(family, mean, spread, reg_covar)
        return cls.within(frame, Arrays.on(device, dtype), X, sample_weight)

    @classmethod
    def within(
        cls,
        frame: Frame,
        arrays: Arrays,
        X: FloatArray,
        sample_weight: FloatArray | None = None,
        radius_squared: float | None = None,
    ) -> Self:
        """X in a frame that is already there."""
        *problems, n_samples, n_features = X.shape
        Y = arrays.empty(*problems, n_features + 1, n_samples)
        for rows in row_chunks(X):
            Y[..., :-1, rows] = arrays.of(frame.place(X[..., rows, :]))
        Y[..., -1, :] = 1
        weights = None if sample_weight is None else arrays.of(sample_weight)
        return cls(Y, frame, arrays, weights, radius_squared)

    def take(self, indices: Any) -> Self:
        """Some of the samples, in the same frame and scratch memory."""
        weights = None if self.weights is None else self.weights[indices]
        return type(self)(
            self.Y[..., indices], self.frame, self.arrays, weights, self.radius_squared
        )

    def some(self, problems: BoolArray) -> Self:
        """Some of the problems."""
        return type(self)(
            self.Y[problems], self.frame[problems], self.arrays, self.weights, self.radius_squared
        )

    def em_step(
        self,
        parameters: Parameters,
        reg_covar: float = 1e-6,
        posterior: Posterior = softmax,
    ) -> tuple[FloatArray, Parameters]:
        """Mean log-likelihood [nat] of ``parameters``, and the parameters after one EM step.

        Args:
            parameters: The current mixture, in this frame.
            reg_covar: Added to the diagonal of every covariance of X [u^2].
            posterior: As in `e_step`; it may be asked twice, and must answer the same.

        Moments by products of a component that has just become tight lack the digits that it now
        needs; those are taken again, exactly. From then on they are exact in the first place.
        """
        statistics = self.e_step(parameters, posterior)
        try:
            fitted = self.m_step(statistics, parameters, reg_covar, mend=False)
            blurred = self.risky(fitted)
            blurred = blurred & ~statistics.about.any(-1)
        except IllDefinedCovariance:
            blurred = np.ones(parameters.weights.shape, dtype=bool)
        if blurred.any():
            statistics = self.e_step(parameters, posterior, exact=blurred)
            fitted = self.m_step(statistics, parameters, reg_covar)
        return statistics.log_likelihood, fitted

    def m_step(
        self,
        statistics: Statistics,
        parameters: Parameters,
        reg_covar: float = 1e-6,
        *,
        mend: bool = True,
    ) -> Parameters:
        """The mixture that maximises the expected log-joint; see `Family.maximise`."""
        regularisation = self.frame.regularisation(reg_covar)
        return self.family.maximise(statistics, parameters, regularisation, mend=mend)

    def e_step(
        self,
        parameters: Parameters,
        posterior: Posterior = softmax,
        *,
        exact: BoolArray | None = None,
    ) -> Statistics:
        """Sufficient statistics of the samples under a mixture of this frame.

        Args:
            parameters: The mixture; leading dimensions are those of the problems, or, over the
                samples of one problem, restarts.
            posterior: What to make of the log-joint; it sees complete ones.
            exact: Components [..., K] that must not be expanded, beside those that are risky.
        """
        family = self.family if posterior is softmax else self.family.complete
        exact = self.risky(parameters) if exact is None else self.risky(parameters) | exact
        # One sum of second moments for all components is about one point each.
        if self._is_wide(parameters, family) or (family.is_shared and exact.any()):
            exact = np.ones_like(exact)
        one_pass = _Pass(self, family, parameters, posterior, exact)
        statistics = one_pass.statistics()
        self.sparse = one_pass.counting < SPARSE * self.n_samples * parameters.weights.size
        return statistics

    def cancellation(self, parameters: Parameters) -> FloatArray:
        """Bound [nat] on the error of a log-joint whose square is expanded, [..., K]."""
        trace = self.family.trace_of_precision(parameters.precisions_cholesky, self.n_features)
        bound = self.arrays.eps * self.radius_squared * trace
        return np.broadcast_to(bound, parameters.weights.shape) if self.family.is_shared else bound

    def blur(self, parameters: Parameters) -> float:
        """How far rounding moves the farthest sample, in deviations of the tightest component."""
        return math.sqrt(self.arrays.eps * float(self.cancellation(parameters).max()))

    def risky(self, parameters: Parameters) -> BoolArray:
        """Components [..., K] whose squares must not be expanded."""
        # Asked twice: after the M-step that made the parameters, and in the E-step that uses them.
        if self._risky[0] is not parameters:
            risky = self.cancellation(parameters) > CANCELLATION[self.arrays.dtype]
            self._risky = parameters, risky
        return self._risky[1]

    def expected(self, parameters: Parameters, reg_covar: float) -> Statistics:
        """What as many samples of the mixture itself are expected to give, but for the
        log-likelihood: the statistics of which `m_step` makes just these parameters."""
        n_samples = self.total_weight
        counts = n_samples * parameters.weights
        covariances = parameters.covariances - self.frame.regularisation(reg_covar)
        return Statistics(
            np.zeros(parameters.weights.shape[:-1]),
            counts,
            np.zeros_like(parameters.means),
            covariances * self.family.per_covariance(counts),
            n_samples,
            parameters.means,
        )

    def log_joint(self, parameters: Parameters) -> FloatArray:
        """Log of weight times density of the samples of one problem, [..., K, n_samples] [nat]."""
        exact = Exact(self.arrays, self.family, parameters, self.frame.log_scale)
        return exact.log_joint(self.Y[:-1])

    def completed(self, statistics: Statistics, parameters: Parameters) -> Statistics:
        """With what cancels in the responsibilities of a tied covariance: the quadratic term."""
        factor = parameters.precisions_cholesky
        quadratic = (factor @ factor.swapaxes(-1, -2) * self.seconds).sum((-2, -1))
        return statistics._replace(
            total_log_likelihood=statistics.total_log_likelihood - 0.5 * quadratic,
            seconds=np.broadcast_to(self.seconds, factor.shape),
        )

    @cached_property
    def seconds(self) -> FloatArray:
        """Second moments of all samples about the centre, [..., D, D]."""
        total = np.zeros((*self.problems, self.n_features, self.n_features))
        for rows in row_chunks(self.Y.swapaxes(-1, -2)):
            Y = self.Y[..., :-1, rows]
            weighted = Y if self.weights is None else Y * self.weights[rows]
            total += to_numpy(weighted @ Y.swapaxes(-1, -2))
        return total

    @cached_property
    def total_weight(self) -> FloatArray:
        """Sum of the sample weights."""
        return np.asarray(self.n_samples if self.weights is None else to_numpy(self.weights).sum())

    def products(self, family: Family, problems: tuple[slice, ...], rows: slice) -> Any:
        """Products of features of a chunk; of all samples only once, where they are few."""
        n_products = family.n_products(self.n_features)
        n_numbers = math.prod(self.problems) * n_products * self.n_samples
        if n_numbers * self.arrays.itemsize <= KEPT_BYTES:
            if self._kept is None or self._kept[0] is not family:
                self._kept = family, self.arrays.empty(*self.problems, n_products, self.n_samples)
                family.lift(self.Y, self._kept[1], self.arrays.xp)
            return self._kept[1][(*problems, slice(None), rows)]
        Y = self.Y[(*problems, slice(None), rows)]
        products = self.arrays.scratch("products", *Y.shape[:-2], n_products, Y.shape[-1])
        family.lift(Y, products, self.arrays.xp)
        return products

    def _is_wide(self, parameters: Parameters, family: Family) -> bool:
        """Whether there are too many products of features for the components that use them."""
        # Going through problems one by one costs more than it saves, and on GPUs nobody measured.
        if self.problems or self.arrays.xp is not np:
            return False
        n_products = family.n_products(self.n_features)
        return family.has_pairs and n_products > PRODUCTS_PER_COMPONENT * parameters.weights.size

    def _largest_square(self) -> float:
        return max(
            float((self.Y[..., :-1, rows] ** 2).sum(-2).max())
            for rows in row_chunks(self.Y.swapaxes(-1, -2))
        )


class _Pass:
    """One E-step: log-joints and moments by products, or exactly, from samples minus mean.

    ``exact`` are the components whose squares are not expanded, because digits would be lost or
    because it is faster so. The moments of all components are taken exactly where most
    responsibilities are negligible: picking the few samples that count is then cheaper than
    multiplying all of them.
    """

    def __init__(
        self,
        samples: Samples,
        family: Family,
        parameters: Parameters,
        posterior: Posterior,
        exact: BoolArray,
    ) -> None:
        self.samples, self.family, self.parameters = samples, family, parameters
        self.arrays, self.posterior = samples.arrays, posterior
        self.exact = Exact(samples.arrays, samples.family, parameters, samples.frame.log_scale)
        self.shape = parameters.weights.shape
        self.expands = not exact.all()
        # Nothing to gain where products are few or samples serve many runs.
        self.may_prune = (
            family.has_pairs and samples.n_features >= SPARSE_FROM and len(self.shape) == 1
        )
        self.prunes = self.may_prune and samples.sparse and self.expands
        self.by_differences = _indices(exact)
        self.by_moments = _indices(np.ones_like(exact)) if self.prunes else self.by_differences
        self.moments: dict[tuple[int, ...], tuple[FloatArray, FloatArray, FloatArray]] = {}
        self.total = np.zeros(self.shape[:-1])
        self.counting = 0.0 if self.may_prune else math.inf

    def statistics(self) -> Statistics:
        if self.expands:
            coefficients = self.family.coefficients(self.parameters, self.samples.frame.log_scale)
            stacked = coefficients.reshape(*self.samples.problems, -1, coefficients.shape[-1])
            self.factors, self.sums = self.arrays.of(stacked), np.zeros(stacked.shape)
        for problems, rows in self._chunks():
            log_joint, products = self._log_joint(problems, rows)
            log_density, resp = self._weighted(rows, *self.posterior(log_joint, self.arrays.xp))
            self.total[problems] += to_numpy(log_density.sum(-1))
            if self.may_prune:
                self.counting += float((resp > NEGLIGIBLE * self.arrays.eps).sum())
            if self.expands and not self.prunes:
                flat = resp.reshape(*products.shape[:-2], -1, products.shape[-1])
                self.sums[problems] += to_numpy(moments(flat, products, self.arrays))
            for index, here in _within(self.by_moments, problems):
                self._add_moments(index, self._rows_of(index, rows), resp[here])
        return self._collected()

    def _log_joint(self, problems: tuple[slice, ...], rows: slice) -> tuple[Any, Any]:
        """[..., K, n] of a chunk, and the products that it was made of last."""
        samples, arrays = self.samples, self.arrays
        some = [part.stop - part.start for part in problems]
        restarts = self.shape[len(problems) :]
        n = rows.stop - rows.start
        flat = arrays.scratch("log_joint", *some, math.prod(restarts), n)
        products = None
        if self.expands:
            for inner in self._inner(rows):
                products = samples.products(self.family, problems, inner)
                columns = slice(inner.start - rows.start, inner.stop - rows.start)
                log_joints(self.factors[problems], products, flat[..., columns], arrays)
        log_joint = flat.reshape(*some, *restarts, n)
        for index, here in _within(self.by_differences, problems):
            log_joint[here] = self.exact.log_joint_of(index, self._rows_of(index, rows))
        return log_joint, products

    def _chunks(self) -> Iterator[tuple[tuple[slice, ...], slice]]:
        """Problems and rows of the chunks."""
        samples = self.samples
        numbers = math.prod(self.shape[len(samples.problems) :])
        if not self.expands:
            numbers += 2 * samples.n_features
        elif not self.prunes:
            numbers += self.family.n_products(samples.n_features)
        room = self.arrays.room(numbers)
        rows = list(split(samples.n_samples, room))
        if not samples.problems:
            return (((), part) for part in rows)
        problems = split(samples.problems[0], room // samples.n_samples, at_least=1)
        return (((some,), part) for some in problems for part in rows)

    def _inner(self, rows: slice) -> Iterator[slice]:
        """Pieces of a chunk whose products fit into the cache."""
        if not self.prunes:
            return iter([rows])
        room = self.arrays.room(self.family.n_products(self.samples.n_features))
        return split(rows.stop, room, begin=rows.start)

    def _weighted(self, rows: slice, log_density: Any, resp: Any) -> tuple[Any, Any]:
        weights = self.samples.weights
        if weights is None:
            return log_density, resp
        return log_density * weights[rows], resp * weights[rows]

    def _rows_of(self, index: tuple[int, ...], rows: slice) -> Any:
        """The samples that a component sees, [D, n]."""
        return self.samples.Y[(*index[: len(self.samples.problems)], slice(-1), rows)]

    def _add_moments(self, index: tuple[int, ...], Y: Any, resp: Any) -> None:
        found = self.exact.moments_of(index, Y, resp)
        before = self.moments.get(index)
        self.moments[index] = found if before is None else _sum(before, found)

    def _collected(self) -> Statistics:
        """The sums of all chunks as statistics."""
        samples, family, means = self.samples, self.family, self.parameters.means
        covariances = self.parameters.covariances
        if self.expands:
            sums = self.sums.reshape(*self.shape, -1)
            counts, firsts = sums[..., -1], sums[..., -1 - samples.n_features : -1]
            seconds = family.seconds(sums, samples.n_features)
        else:
            counts, firsts = np.zeros(self.shape), np.zeros(means.shape)
            seconds = np.zeros(covariances.shape)
        about = np.zeros(means.shape)
        if self.prunes:
            seconds = np.zeros(covariances.shape)
        for index, (count, first, second) in self.moments.items():
            counts[index], firsts[index], about[index] = count, first, means[index]
            family.set_second(seconds, index, second)
        statistics = Statistics(self.total, counts, firsts, seconds, samples.total_weight, about)
        if self.expands and family.complete is not family:
            return samples.completed(statistics, self.parameters)
        return statistics


def em_step(
    X: FloatArray, parameters: Parameters, family: Family, reg_covar: float = 1e-6
) -> tuple[FloatArray, Parameters]:
    """One EM iteration, there and back; for many, keep the `Samples` and their frame.

    Args:
        X: Samples, shape ([n_problems,] n_samples, n_features) [u].
        parameters: The current mixture.
        family: One of `FAMILIES`.
        reg_covar: Added to the diagonal of every covariance [u^2].

    Returns:
        Mean log-likelihood per sample of the *current* mixture, shape (...) [nat], and the next
        mixture.

    Raises:
        IllDefinedCovariance: A new covariance is not positive definite.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, eq. 9.23 to 9.27.

    Example:
        >>> from embench.models.engine import FAMILIES
        >>> one = np.ones((1, 1))
        >>> start = Parameters(one[0], 0 * one, one[:, :, None], one[:, :, None])
        >>> _, fitted = em_step(np.array([[1.0], [3.0]]), start, FAMILIES["full"])
        >>> fitted.means.round(6).item(), fitted.covariances.round(6).item()
        (2.0, 1.000001)
    """
    samples = Samples.of(X, family, reg_covar)
    log_likelihood, fitted = samples.em_step(samples.frame.inward(parameters), reg_covar)
    return log_likelihood, samples.frame.outward(fitted)


def log_joint(
    X: FloatArray,
    parameters: Parameters,
    family: Family,
    *,
    dtype: str = "float64",
    device: str = "cpu",
) -> FloatArray:
    """Log of weight times density of X (n_samples, D): (..., n_components, n_samples) [nat]."""
    arrays = Arrays.on(device, dtype)
    return Exact(arrays, family, parameters, np.zeros(())).log_joint(arrays.of(X.T))


def _indices(mask: Any) -> list[tuple[int, ...]]:
    return [tuple(map(int, index)) for index in np.argwhere(mask)] if mask.any() else []


def _within(
    indices: list[tuple[int, ...]], problems: tuple[slice, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The components of these problems: their places among all and among these."""
    for index in indices:
        if not problems:
            yield index, index
        elif problems[0].start <= index[0] < problems[0].stop:
            yield index, (index[0] - problems[0].start, *index[1:])


def _sum(one: tuple[Any, ...], other: tuple[Any, ...]) -> Any:
    return tuple(a + b for a, b in zip(one, other, strict=True))
