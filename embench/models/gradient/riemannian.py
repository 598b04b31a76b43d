"""``riemannian``: maximum likelihood by optimisation on the manifold of covariance matrices.

The exponential and the logarithm of symmetric positive definite (SPD) matrices are pymanopt's. Of
the two libraries compared it is the one in NumPy, as the engine's statistics are, and takes half
the time of geoopt, whose torch functions warn that torch gives up the way they are compiled. What
it has not, parallel transport and L-BFGS, is here; its optimisers run loops of their own, from
which nothing can be pulled, so the line search is SciPy's.

**Coordinates.** The metric <V, W> = tr(S^-1 V S^-1 W) does not change when S = L L' becomes the
identity and V becomes A = L^-1 V L^-T. A point is its factor L, and a tangent vector is A, in
which inner products are sums of products, as L-BFGS in any textbook wants them. Nothing is lost
where a component is tight: S itself, which adds its mean's square to its covariance, is never
formed.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from importlib.metadata import version
from numbers import Integral
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from scipy.optimize import line_search
from sklearn.utils._param_validation import Interval, StrOptions

from embench.models.engine import IllDefinedCovariance, Parameters, Samples, Statistics, linalg
from embench.models.steps import MixtureByEM, Run
from embench.types import FloatArray

# Nothing is loaded before the first fit: pymanopt imports every library of tensors that it finds.
VERSION = f"pymanopt {version('pymanopt')}"

NOISE = 512.0
"""In units of the precision: a mean log-likelihood that is lower by less has not fallen."""

ENOUGH, STEEP = 1e-4, 0.9
"""Wolfe's conditions: the share of the promised rise that a step must bring, and the share of the
slope that may be left. Nocedal and Wright (2006), section 3.1; steps of L-BFGS are well scaled."""

LESS_STEEP = 0.4
"""The share for directions that are not; measured, 0.1 costs a third more E-steps."""

MOST_TRIALS = 10
"""Doublings of a step, or halvings, before a line search gives up."""

MEMORY = 10
"""How many changes of point and gradient L-BFGS learns from."""

CURVED = 1e-8
"""Changes along which the likelihood bends by less, relative to that of EM's complete data, tell
L-BFGS nothing but rounding, or that it bends the wrong way."""

SMALLEST_WEIGHT = 1e-300
"""Stands for a weight of zero, whose logarithm is no number."""


class RiemannianMixture(MixtureByEM):
    """Maximum likelihood by Riemannian optimisation: L-BFGS on the manifold of covariances.

    With y = (1, x), a component is one SPD matrix S = [[s, s mu'], [s mu, Sigma + s mu mu']], and

        q(y; S) = sqrt(2 pi e) N(y; 0, S) = N(x; mu, Sigma) exp((1 - 1/s - log s) / 2)

    is its Gaussian where s = 1, and less everywhere else. The log-likelihood of the weighted sum of
    these is maximised over all S, in the affine-invariant metric, and over the logarithms of the
    weights. With counts N_k and moments M_k = sum_i r_ik y_i y_i' from an E-step its gradient is
    (M_k - N_k S_k) / 2 (Fisher's identity), and EM's step is 2 / N_k times that: which is how
    gradients are scaled, after which L-BFGS learns from the last steps what EM does not know.

    The first steps are EM's, which find the size of the components at once. Every other step ends
    where a line search finds Wolfe's conditions met; s then becomes 1, which can only raise the
    likelihood and costs nothing. Where the search finds nothing the step is EM's, and the memory is
    empty; where that lowers the likelihood the model stays where it is.

    An iteration costs one E-step, and one more for each further trial of the line search. ``tol``
    bounds what an iteration gains, which is more than an EM step does. A step maximises the
    log-likelihood minus a penalty, sum_k w_k tr(Sigma_k^-1) reg_covar / 2 with the weights where it
    begins: that ends, as EM does, where ``reg_covar`` has been added to the covariances, and
    components do not collapse. ``lower_bound_`` is without it.

    Leaves out the other covariance families, and the line search of the authors.

    Args:
        solver: "lbfgs"; "cg", conjugate gradients by Hestenes and Stiefel; or "gradient", the
            steepest ascent.
        formulation: "augmented", as above, or "naive": Sigma on the manifold and mu in a space with
            a metric that does not know Sigma.
        warm_up: Number of EM steps at the beginning, at least 0.

    The others are those of `em`. ``n_evaluations_`` is the number of E-steps, of all restarts
    together.

    Source:
        Hosseini and Sra (2015), Matrix manifold optimization for Gaussian mixtures, NeurIPS: the
        augmented formulation and L-BFGS; Hosseini and Sra (2020), An alternative to EM for Gaussian
        mixture models: batch and stochastic Riemannian optimization, Mathematical Programming 181:
        the penalty, here with other shares.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> RiemannianMixture(n_components=2, tol=1e-9, random_state=0).fit(X).converged_
        True
    """

    version: ClassVar[str] = f"{MixtureByEM.version}, {VERSION}"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "covariance_type": [StrOptions({"full"})],
        "solver": [StrOptions({"lbfgs", "cg", "gradient"})],
        "formulation": [StrOptions({"augmented", "naive"})],
        "warm_up": [Interval(Integral, 0, None, closed="left")],
    }

    n_evaluations_: int

    def __init__(
        self,
        n_components: int = 1,
        *,
        solver: Literal["lbfgs", "cg", "gradient"] = "lbfgs",
        formulation: Literal["augmented", "naive"] = "augmented",
        warm_up: int = 3,
        **common: Any,
    ) -> None:
        super().__init__(n_components, **common)
        self.solver = solver
        self.formulation = formulation
        self.warm_up = warm_up

    def _fitting(
        self, X: FloatArray, sample_weight: FloatArray | None
    ) -> tuple[Samples, Iterator[Run]]:
        fitting = super()._fitting(X, sample_weight)
        self.n_evaluations_ = 0
        return fitting

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        for _ in range(self.warm_up):
            log_likelihood, parameters = self._em_step(samples, parameters)
            yield log_likelihood, parameters
        formulation = FORMULATIONS[self.formulation](samples, self.reg_covar, parameters)
        here = self._evaluated(formulation, formulation.point(parameters))
        solver = SOLVERS[self.solver]()
        while True:
            there = self._searched(formulation, here, solver)
            if there:
                solver.learn(formulation.manifold, here, there)
            else:
                solver = SOLVERS[self.solver]()
                there = self._after_em(formulation, here)
            yield here.log_likelihood, there.parameters
            here = there

    def _em_step(self, samples: Samples, parameters: Parameters) -> tuple[float, Parameters]:
        self.n_evaluations_ += 1
        log_likelihood, parameters = samples.em_step(parameters, self.reg_covar)
        return float(log_likelihood), parameters

    def _evaluated(self, formulation: Formulation, point: Point) -> Evaluation:
        self.n_evaluations_ += 1
        return formulation.evaluated(point)

    def _searched(
        self, formulation: Formulation, here: Evaluation, solver: Solver
    ) -> Evaluation | None:
        """Where a step in the solver's direction ends, or None where it leads nowhere."""
        direction = solver.direction(here)
        slope = float(here.gradient @ direction)
        trials: dict[float, tuple[float, float, Evaluation | None]] = {}

        def tried(length: FloatArray) -> tuple[float, float, Evaluation | None]:
            """Cost, slope and all the rest at so many times the direction."""
            t = length.item()
            if t not in trials:
                trials[t] = self._tried(formulation, here.point, t * direction, 1 / t)
            return trials[t]

        if not slope < 0:  # nor where it is no number
            return None
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # It warns where it finds nothing, and where a trial went too far there are no numbers.
            warnings.simplefilter("ignore")
            length, *_ = line_search(
                lambda t: tried(t)[0],
                lambda t: np.array([tried(t)[1]]),
                np.zeros(1),
                np.ones(1),
                np.array([slope]),
                here.cost + self._slack(formulation, here),
                c1=ENOUGH,
                c2=solver.steepness,
                maxiter=MOST_TRIALS,
            )
        found = None if length is None else trials[float(length)][2]
        return found and formulation.shown(found)

    def _tried(
        self, formulation: Formulation, start: Point, step: FloatArray, per_length: float
    ) -> tuple[float, float, Evaluation | None]:
        """Cost and its slope along the geodesic, and the evaluation; an infinite cost too far."""
        try:
            point, velocity = formulation.manifold.moved(start, step)
            there = self._evaluated(formulation, point)
        except (IllDefinedCovariance, np.linalg.LinAlgError):
            return math.inf, math.nan, None
        if not (math.isfinite(there.cost) and np.isfinite(there.gradient).all()):
            return math.inf, math.nan, None
        return there.cost, float(there.gradient @ velocity) * per_length, there

    def _after_em(self, formulation: Formulation, here: Evaluation) -> Evaluation:
        """After a step of EM, or where we are if the likelihood falls in it."""
        _, parameters = self._em_step(formulation.samples, here.parameters)
        there = self._evaluated(formulation, formulation.point(parameters))
        rises = there.cost <= here.cost + self._slack(formulation, here)
        return formulation.shown(there) if rises else here

    def _slack(self, formulation: Formulation, here: Evaluation) -> float:
        """What rounding may add to a cost [nat]."""
        return NOISE * formulation.samples.arrays.eps * max(1.0, abs(here.cost))


class Point(NamedTuple):
    """Lower triangular factors [K, n, n] of SPD matrices, and free numbers [m]."""

    factors: FloatArray
    free: FloatArray


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


class Manifold:
    """SPD matrices in the affine-invariant metric, and numbers in the Euclidean one.

    Tangent vectors are one vector [K n n + m] of coordinates: A of each matrix, then the numbers.
    """

    def __init__(self, n_matrices: int, size: int) -> None:
        from pymanopt.manifolds import SymmetricPositiveDefinite

        self.shape = n_matrices, size, size
        self.matrices = SymmetricPositiveDefinite(size, k=n_matrices)
        self.identity = np.broadcast_to(np.eye(size), self.shape)

    def moved(self, point: Point, step: FloatArray) -> tuple[Point, FloatArray]:
        """The end of a geodesic, and the velocity there: the step, transported.

        Raises:
            np.linalg.LinAlgError: It is too far away for floating point.
        """
        A, free = self._split(step)
        moved = linalg.symmetric(self.matrices.exp(self.identity, A))
        if not np.isfinite(moved).all():
            raise np.linalg.LinAlgError("a step beyond all numbers")
        factors = np.linalg.cholesky(moved)
        velocity = linalg.symmetric(linalg.triangular_inverses(factors) @ A @ factors)
        return Point(point.factors @ factors, point.free + free), self._joined(velocity, free)

    def transported(self, old: Point, new: Point, vectors: list[FloatArray]) -> FloatArray:
        """The step from one point to the other, and vectors at the first, all at the second.

        Args:
            old: Where the vectors are.
            new: Where they go, in parallel along the geodesic.
            vectors: Coordinates, each [size].

        Returns:
            Coordinates, (1 + len(vectors), size).
        """
        ratio = linalg.triangular_inverses(old.factors) @ new.factors
        A = self.matrices.log(self.identity, ratio @ ratio.swapaxes(-1, -2))
        # The root of the transport, seen from the factors at both ends, is a rotation.
        halfway = self.matrices.exp(self.identity, A / 2)
        rotation = linalg.triangular_inverses(ratio) @ halfway
        stacked = np.stack([self._joined(A, new.free - old.free), *vectors])
        A, free = self._split(stacked)
        return self._joined(linalg.symmetric(rotation @ A @ rotation.swapaxes(-1, -2)), free)

    def _split(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Matrices [..., K, n, n] and numbers [..., m] of coordinates [..., size]."""
        n_coordinates = math.prod(self.shape)
        A, free = vectors[..., :n_coordinates], vectors[..., n_coordinates:]
        return A.reshape(*A.shape[:-1], *self.shape), free

    def _joined(self, A: FloatArray, free: FloatArray) -> FloatArray:
        return np.concatenate([A.reshape(*free.shape[:-1], -1), free], axis=-1)


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


class Solver:
    """Steepest descent: EM's step to first order, and as long as the line search will have it."""

    steepness: ClassVar[float] = LESS_STEEP

    def direction(self, here: Evaluation) -> FloatArray:
        """Where to go, as coordinates [size]; the first trial is all the way."""
        return -here.scale * here.gradient

    def learn(self, manifold: Manifold, here: Evaluation, there: Evaluation) -> None:
        """Take note of a step."""


class ConjugateGradient(Solver):
    """By the rule of Hestenes and Stiefel, that begins anew where it points uphill."""

    def __init__(self) -> None:
        self.last: FloatArray | None = None
        self.before: FloatArray | None = None

    def direction(self, here: Evaluation) -> FloatArray:
        self.last = steepest = super().direction(here)
        if self.before is not None:
            gradient, direction = self.before
            change = here.gradient - gradient
            beta = -(steepest @ change) / (direction @ change)
            mixed = steepest + max(0.0, beta) * direction
            self.last = mixed if mixed @ here.gradient < 0 else steepest
        return self.last

    def learn(self, manifold: Manifold, here: Evaluation, there: Evaluation) -> None:
        assert self.last is not None
        vectors = [here.gradient, self.last]
        self.before = manifold.transported(here.point, there.point, vectors)[1:]


class LBFGS(Solver):
    """Limited-memory BFGS, with changes that go along from point to point.

    Begins with EM's scale, lengthened or shortened as the last change asks (Nocedal and Wright,
    2006, eq. 7.20 in that metric).
    """

    steepness = STEEP

    def __init__(self) -> None:
        self.pairs: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=MEMORY)

    def direction(self, here: Evaluation) -> FloatArray:
        q, shares = here.gradient.copy(), []
        for step, change in reversed(self.pairs):
            shares.append((step @ q) / (step @ change))
            q -= shares[-1] * change
        r = here.scale * q
        if self.pairs:
            step, change = self.pairs[-1]
            r *= (step @ change) / (change @ (here.scale * change))
        for (step, change), share in zip(self.pairs, reversed(shares), strict=True):
            r += (share - (change @ r) / (step @ change)) * step
        return -r

    def learn(self, manifold: Manifold, here: Evaluation, there: Evaluation) -> None:
        vectors = [here.gradient, *(vector for pair in self.pairs for vector in pair)]
        step, gradient, *learnt = manifold.transported(here.point, there.point, vectors)
        self.pairs.clear()
        self.pairs.extend(zip(learnt[::2], learnt[1::2], strict=True))
        change = there.gradient - gradient
        if step @ change > CURVED * (step @ (step / there.scale)):
            self.pairs.append((step, change))


FORMULATIONS = {"augmented": Augmented, "naive": Naive}
SOLVERS = {"lbfgs": LBFGS, "cg": ConjugateGradient, "gradient": Solver}
