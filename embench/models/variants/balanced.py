"""``sinkhorn-em``: responsibilities that respect the weights, by entropic optimal transport."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import minimize
from sklearn.utils._param_validation import Interval

from embench.models.engine import Parameters, Samples, Statistics, softmax
from embench.models.engine.arrays import to_numpy
from embench.models.steps import MixtureByEM
from embench.types import FloatArray

ROUNDING = 100
"""In units of the precision: shares of samples are not held more exactly."""

MAX_TRUST_RADIUS = 1e6
"""Longest step of the potentials [nat]: from component to component in the widest data."""


class SinkhornEM(MixtureByEM):
    """Sinkhorn EM: responsibilities are a transport plan to components of given size.

    Maximises EM's lower bound on the log-likelihood, but over responsibilities whose sums over the
    samples are n_samples * w_k: entropic optimal transport. The best are the softmax of
    log(w_k N(x_i; mu_k, S_k)) + f_k, where the potentials f minimise the convex dual
    1/n sum_i log sum_k w_k N(x_i; mu_k, S_k) exp(f_k) - sum_k w_k f_k. With the true weights
    given, it has fewer poor optima than EM.

    Leaves out the estimation of weights: they stay those of the start (``weights_init``, else of
    ``init_params``). ``lower_bound_`` is the dual's minimum before the last M-step; it never falls,
    and never lies above the log-likelihood.

    Args:
        transport_tol: Largest error of the components' shares of the samples, in (0, 1); float32
            holds them to 1e-5. The others are those of `em`.

    Notes:
        Keeps a log-joint per component and sample in memory, on the CPU. Sinkhorn's own iteration
        finds the potentials in hundreds of passes where components are apart; Newton's method in a
        trust region finds the same ones in three or four, from those of the step before.

    Source:
        Mena, Nejatbakhsh, Varol and Niles-Weed (2020), Sinkhorn EM: an expectation-maximization
        algorithm based on entropic optimal transport, section 2; Peyré and Cuturi (2019),
        Computational optimal transport, section 5.3 (the dual over one side).

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> sinkhorn = SinkhornEM(n_components=2, random_state=0).fit(X)
        >>> sorted(sinkhorn.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    in_memory = True

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "transport_tol": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(
        self, n_components: int = 1, *, transport_tol: float = 1e-6, **common: Any
    ) -> None:
        super().__init__(n_components, **common)
        self.transport_tol = transport_tol

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        tol = max(self.transport_tol, ROUNDING * samples.arrays.eps)
        weights, potentials = parameters.weights, np.zeros(self.n_components)
        while True:
            potentials = _balancing(samples, parameters, potentials, tol)
            statistics = _tilted(samples, parameters, potentials)
            fitted = samples.m_step(statistics, parameters, self.reg_covar)
            parameters = fitted._replace(weights=weights)
            yield float(statistics.log_likelihood - weights @ potentials), parameters


def _balancing(
    samples: Samples, parameters: Parameters, start: FloatArray, tol: float
) -> FloatArray:
    """Potentials [K] [nat] under which each component holds its weight's share of the samples."""
    n_samples, wanted = samples.n_samples, parameters.weights
    log_joint = samples.log_joint(parameters)
    sizes = np.ones(n_samples) if samples.weights is None else to_numpy(samples.weights)
    sizes = sizes / sizes.sum()

    def shares(potentials: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        log_density, resp = softmax(log_joint + potentials[:, None], np)
        return log_density, resp, resp @ sizes

    # The dual does not change with the sum of the potentials: its square makes it strictly convex.
    def dual(potentials: FloatArray) -> tuple[float, FloatArray]:
        log_density, _, found = shares(potentials)
        total = potentials.sum()
        value = log_density @ sizes - wanted @ potentials + 0.5 * total**2
        return float(value), found - wanted + total

    def hessian(potentials: FloatArray) -> FloatArray:
        _, resp, found = shares(potentials)
        return np.diag(found) - (resp * sizes) @ resp.T + 1.0

    options = {"gtol": tol, "max_trust_radius": MAX_TRUST_RADIUS}
    return minimize(dual, start, method="trust-exact", jac=True, hess=hessian, options=options).x


def _tilted(samples: Samples, parameters: Parameters, potentials: FloatArray) -> Statistics:
    """An E-step with a potential [nat] added to every log-joint of a component."""
    column = samples.arrays.of(potentials[:, None])

    def posterior(log_joint: Any, xp: Any) -> tuple[Any, Any]:
        log_joint += column
        return softmax(log_joint, xp)

    return samples.e_step(parameters, posterior)
