"""``annealed-em``: responsibilities soft at first, so that a poor start is soon forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from embench.models.engine import Parameters, Posterior, Samples, softmax
from embench.models.steps import MixtureByEM, Run


class AnnealedEM(MixtureByEM):
    """EM with deterministic annealing: responsibilities soft at first, then as they are.

    Iteration t is an EM step with the responsibilities

        r_ik = (w_k N(x_i; mu_k, S_k))^beta / sum_j (w_j N(x_i; mu_j, S_j))^beta,
        beta = min(1, beta_min rate^t),

    which raises 1 / (n beta) sum_i log sum_k (w_k N(x_i; mu_k, S_k))^beta and not, while beta is
    below 1, the log-likelihood. Only at beta = 1 can ``tol`` end the fit; ``beta_min=1`` is EM.

    Leaves out the iterations to convergence at each beta, and any noise: below a ``beta_min`` of
    about 0.5 components become equal before they part again, which takes so long that ``tol``
    mostly ends the fit before, far below EM. Above, it ends now above EM and now below.

    Args:
        beta_min: Inverse temperature of the first iteration, in (0, 1].
        rate: Factor on it after each iteration, above 1.

    The others are those of `em`; ``max_iter`` counts all temperatures.

    Source:
        Ueda and Nakano (1998), Deterministic annealing EM algorithm, Neural Networks 11(2),
        eq. 15 and section 3.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> model = AnnealedEM(n_components=2, random_state=0).fit(X)
        >>> sorted(model.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "beta_min": [Interval(Real, 0, 1, closed="right")],
        "rate": [Interval(Real, 1, None, closed="neither")],
    }

    def __init__(
        self, n_components: int = 1, *, beta_min: float = 0.7, rate: float = 1.1, **common: Any
    ) -> None:
        super().__init__(n_components, **common)
        self.beta_min = beta_min
        self.rate = rate

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        for beta in self._betas():
            statistics = samples.e_step(parameters, tempered(beta))
            parameters = samples.m_step(statistics, parameters, self.reg_covar)
            yield float(statistics.log_likelihood), parameters

    def _betas(self) -> Iterator[float]:
        """Inverse temperatures, for ever."""
        beta = self.beta_min
        while True:
            yield beta
            beta = min(1.0, beta * self.rate)

    def _iterated(
        self, samples: Samples, run: Run, random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """A run after each of its iterations; none ends it while beta is below 1."""
        steps = self._steps(samples, run.parameters, random_state)
        for beta, (lower_bound, parameters) in zip(self._betas(), steps, strict=True):
            if run.n_iter == self.max_iter or run.converged:
                return
            run = run.after(lower_bound, parameters, self.tol if beta == 1 else 0.0)
            yield run


def tempered(beta: float) -> Posterior:
    """Log-densities as ever, and responsibilities of the log-joint times ``beta``."""
    if beta == 1:
        return softmax

    def posterior(log_joint: Any, xp: Any) -> tuple[Any, Any]:
        _, resp = softmax(beta * log_joint, xp)
        log_density, _ = softmax(log_joint, xp)
        return log_density, resp

    return posterior
