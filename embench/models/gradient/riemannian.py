"""``riemannian``: maximum likelihood by optimisation on the manifold of covariance matrices.

Symmetric positive definite (SPD) matrices, their exponential and logarithm come from pymanopt. Of
the two maintained libraries that we compared, it computes in NumPy, as the engine's statistics and
parameters are, and takes half the time of geoopt, whose torch functions moreover warn that they are
compiled in a way that torch gives up. Neither has L-BFGS, and both run their own loops, from which
nothing can be pulled; these lines are ours, and the line search is SciPy's.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from scipy.optimize import line_search
from scipy.special import logsumexp
from sklearn.utils._param_validation import StrOptions

from embench.models.engine import IllDefinedCovariance, Parameters, Samples, Statistics, linalg
from embench.models.steps import MixtureByEM, Run
from embench.types import FloatArray

# Nothing is loaded before the first fit: pymanopt imports every library of tensors that it finds.
VERSION = f"pymanopt {version('pymanopt')}"

NOISE = 512.0
"""In units of the precision: a mean log-likelihood that is lower by less has not fallen."""

MEMORY = 10
"""Changes of point and gradient that L-BFGS learns from."""

CURVED = 1e-8
"""A pair of changes is learnt from where its curvature is at least so much of the step's square."""

SMALLEST_WEIGHT = 1e-300
"""Stands for a weight of zero, whose logarithm is no number."""


class RiemannianMixture(MixtureByEM):
    version: ClassVar[str] = VERSION

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "covariance_type": [StrOptions({"full"})],
        "solver": [StrOptions({"lbfgs", "cg", "gradient"})],
        "formulation": [StrOptions({"augmented", "naive"})],
    }

    n_evaluations_: int

    def __init__(
        self,
        n_components: int = 1,
        *,
        solver: Literal["lbfgs", "cg", "gradient"] = "lbfgs",
        formulation: Literal["augmented", "naive"] = "augmented",
        **common: Any,
    ) -> None:
        super().__init__(n_components, **common)
        self.solver = solver
        self.formulation = formulation

    def _fitting(
        self, X: FloatArray, sample_weight: FloatArray | None
    ) -> tuple[Samples, Iterator[Run]]:
        fitting = super()._fitting(X, sample_weight)
        self.n_evaluations_ = 0
        return fitting

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        problem = FORMULATIONS[self.formulation](samples, self.reg_covar, self)
        log_likelihood, parameters = problem.em_step(parameters)
        yield log_likelihood, parameters
        solver = SOLVERS[self.solver]()
        here = problem.evaluated(problem.place(parameters))
        while True:
            there = self._searched(problem, here, solver.direction(here), solver.curvature)
            if there is None:
                solver = SOLVERS[self.solver]()
                there = problem.evaluated(problem.place(problem.em_step(here.parameters)[1]))
                if there.cost > here.cost + problem.slack(here):
                    there = here
            else:
                solver.learn(problem, here, there)
            yield here.log_likelihood, there.parameters
            here = there

    def _searched(self, problem, here, direction, curvature):
        slope = float(here.gradient @ direction)
        if not slope < 0:
            return None
        seen = {}

        def at(t):
            t = float(t[0])
            if t not in seen:
                seen[t] = problem.along(here, direction, t)
            return seen[t]

        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = line_search(
                lambda t: at(t)[0],
                lambda t: np.array([at(t)[1]]),
                np.zeros(1),
                np.ones(1),
                np.array([slope]),
                here.cost + problem.slack(here),
                c1=1e-4,
                c2=curvature,
                maxiter=10,
            )
        self.trace = getattr(self, "trace", [])
        self.trace.append((found[0], len(seen)))
        if found[0] is None:
            return None
        return problem.projected(seen[float(found[0])][2])


class Point:
    def __init__(self, spd: FloatArray, flat: FloatArray) -> None:
        self.spd, self.flat = spd, flat
        self.factor = np.linalg.cholesky(spd)

    @cached_property
    def inverse(self):
        return linalg.triangular_inverses(self.factor)

    def outward(self, vector):
        """Coordinates to tangent."""
        K, n = self.spd.shape[:2]
        A = vector[: K * n * n].reshape(K, n, n)
        return [self.factor @ A @ self.factor.swapaxes(-1, -2), vector[K * n * n :]]

    def inward(self, tangent):
        A = self.inverse @ tangent[0] @ self.inverse.swapaxes(-1, -2)
        return np.concatenate([linalg.symmetric(A).ravel(), np.asarray(tangent[1])])


class State(NamedTuple):
    point: Point
    parameters: Parameters
    statistics: Statistics
    log_likelihood: float
    cost: float
    gradient: FloatArray
    scale: FloatArray


class Formulation(ABC):
    def __init__(self, samples, reg_covar, model):
        self.samples, self.reg_covar, self.model = samples, reg_covar, model
        self.regularisation = samples.frame.regularisation(reg_covar)[0]
        self.manifold = None

    def em_step(self, parameters):
        self.model.n_evaluations_ += 1
        log_likelihood, parameters = self.samples.em_step(parameters, self.reg_covar)
        return float(log_likelihood), parameters

    def _manifold(self, K, n, m):
        from pymanopt.manifolds import Euclidean, Product, SymmetricPositiveDefinite

        return Product([SymmetricPositiveDefinite(n, k=K), Euclidean(m)])

    def slack(self, here):
        return NOISE * self.samples.arrays.eps * max(1.0, abs(here.cost))

    def place(self, parameters):
        point = self._place(parameters)
        if self.manifold is None:
            self.manifold = self._manifold(*point.spd.shape[:2], len(point.flat))
        return point

    def along(self, here, direction, t):
        try:
            tangent = here.point.outward(direction)
            spd, flat = self.manifold.exp(
                [here.point.spd, here.point.flat], [t * tangent[0], t * tangent[1]]
            )
            if not np.isfinite(spd).all():
                return math.inf, math.nan, None
            there = self.evaluated(Point(linalg.symmetric(spd), flat))
        except (IllDefinedCovariance, np.linalg.LinAlgError, ValueError):
            return math.inf, math.nan, None
        if not math.isfinite(there.cost):
            return math.inf, math.nan, None
        # the velocity of the geodesic
        S = there.point.spd @ np.linalg.solve(here.point.spd, tangent[0])
        velocity = there.point.inward([linalg.symmetric(S), tangent[1]])
        return there.cost, float(there.gradient @ velocity), there

    def carried(self, old: Point, new: Point, vectors):
        """Parallel transport of coordinates (n, size), the first being replaced by log."""
        a, b = [old.spd, old.flat], [new.spd, new.flat]
        log = self.manifold.log(a, b)
        middle = self.manifold.exp(a, log * 0.5)[0]
        Q = new.inverse @ np.linalg.solve(old.spd, middle).swapaxes(-1, -2) @ old.factor
        vectors = np.stack([old.inward(log), *vectors])
        K, n = old.spd.shape[:2]
        A = vectors[:, : K * n * n].reshape(-1, K, n, n)
        A = Q @ A @ Q.swapaxes(-1, -2)
        return np.concatenate([A.reshape(len(vectors), -1), vectors[:, K * n * n :]], axis=1)

    def moments(self, statistics, means):
        """First and second moments about the means."""
        shift = means - statistics.about
        seconds = self.samples.family.translate(
            statistics.seconds, statistics.counts, statistics.firsts, shift
        )
        return statistics.firsts - statistics.counts[:, None] * shift, seconds

    def whitened(self, statistics, parameters):
        P = parameters.precisions_cholesky
        firsts, seconds = self.moments(statistics, parameters.means)
        K = len(P)
        total = float(statistics.n_samples)
        seconds = seconds + total / K * self.regularisation
        z = (P.swapaxes(-1, -2) @ firsts[..., None])[..., 0]
        Z = P.swapaxes(-1, -2) @ seconds @ P
        return statistics.counts / total, z / total, Z / total

    def penalty(self, parameters):
        P = parameters.precisions_cholesky
        return 0.5 * float((self.regularisation * (P @ P.swapaxes(-1, -2))).sum()) / len(P)

    def projected(self, there):
        return there

    def step_weights(self, weights):
        return 1 / np.maximum(weights, 1 / self.samples.n_samples)


class Augmented(Formulation):
    def _place(self, parameters):
        weights, means, covariances, _ = parameters
        K, D = means.shape
        S = np.empty((K, D + 1, D + 1))
        S[:, 0, 0] = 1
        S[:, 0, 1:] = S[:, 1:, 0] = means
        S[:, 1:, 1:] = covariances + means[:, :, None] * means[:, None, :]
        return Point(S, np.log(np.maximum(weights, SMALLEST_WEIGHT)))

    def evaluated(self, point):
        L = point.factor
        s = point.spd[:, 0, 0]
        means = point.spd[:, 1:, 0] / s[:, None]
        own = L[:, 1:, 1:]
        bonus = 0.5 * (1 - 1 / s - np.log(s))
        logits = point.flat - logsumexp(point.flat)
        joint = logits + bonus
        log_z = float(logsumexp(joint))
        parameters = Parameters(
            np.exp(joint - log_z),
            means,
            linalg.symmetric(own @ own.swapaxes(-1, -2)),
            linalg.triangular_inverses(own).swapaxes(-1, -2),
        )
        self.model.n_evaluations_ += 1
        statistics = self.samples.e_step(parameters)
        log_likelihood = float(statistics.log_likelihood)
        cost = self.penalty(parameters) - log_likelihood - log_z
        return self.state(point, parameters, statistics, log_likelihood, cost, np.exp(logits), s)

    def state(self, point, parameters, statistics, log_likelihood, cost, weights, s):
        counts, z, Z = self.whitened(statistics, parameters)
        K, n = point.spd.shape[:2]
        A = np.empty((K, n, n))
        A[:, 0, 0] = counts / s
        A[:, 0, 1:] = A[:, 1:, 0] = z / np.sqrt(s)[:, None]
        A[:, 1:, 1:] = Z
        A -= counts[:, None, None] * np.eye(n)
        gradient = -np.concatenate([0.5 * A.ravel(), counts - weights])
        step = self.step_weights(weights)
        scale = np.concatenate([np.repeat(2 * step, n * n), step])
        return State(point, parameters, statistics, log_likelihood, cost, gradient, scale)

    def projected(self, there):
        point = self._place(there.parameters)
        cost = self.penalty(there.parameters) - there.log_likelihood
        return self.state(
            point, there.parameters, there.statistics, there.log_likelihood, cost,
            there.parameters.weights, np.ones(len(point.spd)),
        )


class Naive(Formulation):
    def _place(self, parameters):
        weights, means, covariances, _ = parameters
        logits = np.log(np.maximum(weights, SMALLEST_WEIGHT))
        return Point(covariances, np.concatenate([means.ravel(), logits]))

    def evaluated(self, point):
        K, D = point.spd.shape[:2]
        means, logits = point.flat[: K * D].reshape(K, D), point.flat[K * D :]
        parameters = Parameters(
            np.exp(logits - logsumexp(logits)), means, point.spd, point.inverse.swapaxes(-1, -2)
        )
        self.model.n_evaluations_ += 1
        statistics = self.samples.e_step(parameters)
        counts, z, Z = self.whitened(statistics, parameters)
        A = 0.5 * (Z - counts[:, None, None] * np.eye(D))
        g = (parameters.precisions_cholesky @ z[..., None])[..., 0]
        gradient = -np.concatenate([A.ravel(), g.ravel(), counts - parameters.weights])
        step = self.step_weights(parameters.weights)
        scale = np.concatenate([np.repeat(2 * step, D * D), np.repeat(step, D), step])
        log_likelihood = float(statistics.log_likelihood)
        cost = self.penalty(parameters) - log_likelihood
        return State(point, parameters, statistics, log_likelihood, cost, gradient, scale)


class Gradient:
    curvature = 0.9
    def direction(self, here):
        return -here.scale * here.gradient

    def learn(self, problem, here, there):
        pass


class CG(Gradient):
    curvature = 0.1
    def __init__(self):
        self.last = None
        self.beta_info = None

    def direction(self, here):
        d = -here.scale * here.gradient
        if self.last is not None:
            old_gradient, old_direction = self.last
            y = here.gradient - old_gradient
            denominator = float(y @ old_direction)
            beta = max(0.0, -float(d @ y) / denominator) if denominator > 0 else 0.0
            d2 = d + beta * old_direction
            if d2 @ here.gradient < 0:
                d = d2
        self.d = d
        return d

    def learn(self, problem, here, there):
        _, g, d = problem.carried(here.point, there.point, [here.gradient, self.d])
        self.last = g, d


class LBFGS(Gradient):
    gamma = False
    def __init__(self):
        self.steps = deque(maxlen=MEMORY)
        self.changes = deque(maxlen=MEMORY)

    def direction(self, here):
        q = here.gradient.copy()
        pairs = list(zip(self.steps, self.changes))
        alphas = []
        for s, y in reversed(pairs):
            alpha = (s @ q) / (s @ y)
            q -= alpha * y
            alphas.append(alpha)
        r = here.scale * q
        if self.gamma and pairs:
            s, y = pairs[-1]
            r *= (s @ y) / (y @ (here.scale * y))
        for (s, y), alpha in zip(pairs, reversed(alphas)):
            r += (alpha - (y @ r) / (s @ y)) * s
        return -r

    def learn(self, problem, here, there):
        n = len(self.steps)
        step, gradient, *others = problem.carried(
            here.point, there.point, [here.gradient, *self.steps, *self.changes]
        )
        self.steps = deque(others[:n], maxlen=MEMORY)
        self.changes = deque(others[n:], maxlen=MEMORY)
        change = there.gradient - gradient
        if step @ change > CURVED * (step @ (step / there.scale)):
            self.steps.append(step)
            self.changes.append(change)


FORMULATIONS = {"augmented": Augmented, "naive": Naive}
SOLVERS = {"lbfgs": LBFGS, "cg": CG, "gradient": Gradient}
