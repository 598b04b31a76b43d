"""``sinkhorn-em``: responsibilities that respect the weights, by entropic optimal transport."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from embench.models.em import MixtureByEM
from embench.models.engine import Parameters, Samples, Statistics, softmax
from embench.types import FloatArray

SMALLEST_SHARE = 1e-300
"""Stands for a share of zero, whose logarithm is no number."""

ROUNDING = 100
"""In units of the precision: shares of samples are not held more exactly."""


class SinkhornEM(MixtureByEM):
    """Sinkhorn EM: responsibilities are a transport plan from samples to components of given size.

    Maximises the entropic optimal transport objective: that of EM's E-step, over responsibilities
    whose sums over the samples are n_samples * w_k. The best are a softmax of
    log(w_k N(x_i; mu_k, S_k)) + f_k, and Sinkhorn's iteration finds the potentials f. With the
    true weights given, it has fewer poor optima than EM.

    Leaves out the estimation of weights: they stay those of the start (``weights_init``, else of
    ``init_params``). ``lower_bound_`` is the objective before the last M-step; it never falls, and
    never lies above the log-likelihood.

    Args:
        sinkhorn_tol: Largest error of a component's share of the samples, in (0, 1); float32 holds
            it to 1e-5.
        max_sinkhorn_iter: Most Sinkhorn iterations in a step, at least 1. Each is a pass over the
            samples, without memory for their responsibilities; potentials are kept from step to
            step, so most steps take few. The others are those of `em`.

    Source:
        Mena, Nejatbakhsh, Varol and Niles-Weed (2020), Sinkhorn EM: an expectation-maximization
        algorithm based on entropic optimal transport, section 3 and Algorithm 1.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> sinkhorn = SinkhornEM(n_components=2, random_state=0).fit(X)
        >>> sorted(sinkhorn.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "sinkhorn_tol": [Interval(Real, 0, 1, closed="neither")],
        "max_sinkhorn_iter": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        sinkhorn_tol: float = 1e-6,
        max_sinkhorn_iter: int = 100,
        **common: Any,
    ) -> None:
        super().__init__(n_components, **common)
        self.sinkhorn_tol = sinkhorn_tol
        self.max_sinkhorn_iter = max_sinkhorn_iter

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        weights, potentials = parameters.weights, np.zeros(self.n_components)
        while True:
            statistics, potentials = self._balanced(samples, parameters, potentials)
            fitted = samples.m_step(statistics, parameters, self.reg_covar)
            parameters = fitted._replace(weights=weights)
            yield float(statistics.log_likelihood - weights @ potentials), parameters

    def _balanced(
        self, samples: Samples, parameters: Parameters, potentials: FloatArray
    ) -> tuple[Statistics, FloatArray]:
        """Statistics whose counts are n_samples * weights, and their potentials [K] [nat]."""
        tol = max(self.sinkhorn_tol, ROUNDING * samples.arrays.eps)
        for _ in range(self.max_sinkhorn_iter):
            statistics = _tilted(samples, parameters, potentials)
            shares = statistics.counts / statistics.n_samples
            if np.abs(shares - parameters.weights).max() <= tol:
                break
            found, wanted = np.maximum([shares, parameters.weights], SMALLEST_SHARE)
            potentials = potentials + np.log(wanted / found)
        return statistics, potentials


def _tilted(samples: Samples, parameters: Parameters, potentials: FloatArray) -> Statistics:
    """An E-step with a potential [nat] added to every log-joint of a component."""
    column = samples.arrays.of(potentials[:, None])

    def posterior(log_joint: Any, xp: Any) -> tuple[Any, Any]:
        log_joint += column
        return softmax(log_joint, xp)

    return samples.e_step(parameters, posterior)
