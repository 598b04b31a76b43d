"""``riemannian``: maximum likelihood by optimisation on the manifold of covariance matrices."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.optimize import line_search
from sklearn.utils._param_validation import Interval, StrOptions

from embench.models.engine import IllDefinedCovariance, Parameters, Samples
from embench.models.gradient.formulations import FORMULATIONS, Evaluation, Formulation
from embench.models.gradient.manifold import Point
from embench.models.gradient.solvers import SOLVERS, Solver
from embench.models.steps import MixtureByEM, Run
from embench.types import FloatArray

# Nothing is loaded before the first fit: pymanopt imports every library of tensors that it finds.
VERSION = f"pymanopt {version('pymanopt')}"

NOISE = 512.0
"""In units of the precision: a mean log-likelihood that is lower by less has not fallen."""

ENOUGH = 1e-4
"""Wolfe's first condition: the share of the promised rise that a step must bring (Nocedal and
Wright, 2006, section 3.1). The second is the solvers' own."""

MOST_TRIALS = 10
"""Doublings of a step, or halvings, before a line search gives up."""


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
