"""``hard-em``: every sample belongs to one component."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from embench.models.engine import Parameters, Samples
from embench.models.steps import MixtureByEM


class HardEM(MixtureByEM):
    """Classification EM: each sample counts for its most probable component alone.

    Maximises the mean classification log-likelihood 1/n sum_i max_k log(w_k N(x_i; mu_k, S_k)) by
    alternating the best partition of the samples and the moments of its parts. There are finitely
    many partitions, so it comes to rest after finitely many steps, in practice after few.

    Leaves out how sure an assignment is: where components overlap, their tails are cut off, so
    covariances come out too small and means too far apart. A part without samples stays empty.
    ``lower_bound_`` is the classification log-likelihood of the mixture before the last M-step; it
    never lies above the log-likelihood.

    Args:
        n_components: Number of components; it has no parameters of its own, the others are those
            of `em`.

    Source:
        Celeux and Govaert (1992), A classification EM algorithm for clustering and two stochastic
        versions, section 3 (the CEM algorithm).

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> hard = HardEM(n_components=2, random_state=0).fit(X)
        >>> sorted(hard.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        while True:
            log_likelihood, parameters = samples.em_step(parameters, self.reg_covar, hardmax)
            yield float(log_likelihood), parameters


def hardmax(log_joint: Any, xp: Any) -> tuple[Any, Any]:
    """Largest log-joint [..., n], and 1 at it [..., K, n], in place; those that tie share it.

    A sharp choice among equals would depend on the order of the components, and the shared one has
    the same classification log-likelihood.
    """
    largest = xp.amax(log_joint, -2)
    log_joint[...] = log_joint == largest[..., None, :]
    log_joint /= log_joint.sum(-2)[..., None, :]
    return largest, log_joint
