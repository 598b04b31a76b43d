"""``amortised-em`` and ``recurrent-em``: operators that were trained once, as estimators."""

from __future__ import annotations

import itertools
import warnings
from abc import ABC
from collections.abc import Iterator
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils._param_validation import StrOptions

from embench.models import engine
from embench.models.base import DivergenceWarning
from embench.models.checkpoint import changed_at, digest
from embench.models.engine import Parameters
from embench.models.steps import InitParams, MixtureByEM, Run
from embench.models.unrolled.bridge import mixtures_of, parameters_of, placed
from embench.models.unrolled.checkpoint import Checkpoint, shipped
from embench.models.unrolled.em_map import e_step
from embench.models.unrolled.operators import Core
from embench.models.unrolled.tasks import BATCH_SIZE, N_UPDATES, OperatorTraining
from embench.types import Draw, InputError


class LearnedEM(MixtureByEM, ABC):
    """EM by an operator that was trained before any fit: everything but which one."""

    name: ClassVar[str]
    """The model's, and that of the weights that come with embench."""

    core: ClassVar[Core]
    """What is learned: see `EMOperator`."""

    in_memory = True

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "covariance_type": [StrOptions({"full"})],
        "checkpoint": [str, Path, None],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        checkpoint: str | Path | None = None,
        max_iter: int = 5,
        init_params: InitParams = "spherical",
        covariance_type: Literal["full"] = "full",
        **common: Any,
    ) -> None:
        super().__init__(
            n_components,
            max_iter=max_iter,
            init_params=init_params,
            covariance_type=covariance_type,
            **common,
        )
        self.checkpoint = checkpoint

    @classmethod
    def version(cls, checkpoint: str | Path | None = None, **_: Any) -> str:
        """Libraries, and a digest of the weights: retrained is another model."""
        content = digest(checkpoint or shipped(cls.name))
        return f"{MixtureByEM.version}, torch {torch.__version__}, weights {content}"

    training_suite: ClassVar[str] = "training"

    def training(
        self, draw: Draw, seed: int, n_updates: int | None, batch_size: int | None
    ) -> OperatorTraining:
        """A training on datasets that are drawn anew in every update, for `embench train`."""
        return OperatorTraining(
            self.core, draw, seed, n_updates or N_UPDATES, batch_size or BATCH_SIZE
        )

    @property
    def training_seconds(self) -> float:
        """What the training took of the CPU, once, before any fit [s]."""
        return float(self._trained().provenance["cpu_seconds"])

    def _trained(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Checkpoint:
        """The weights and where they come from; shared by all fits, so not to be changed.

        Raises:
            InputError: They are not there, or those of another model.
        """
        path = Path(self.checkpoint or shipped(self.name))
        found = _loaded(path, changed_at(path), dtype, torch.device(device))
        if found.operator.core != self.core:
            raise InputError(
                f"{path}: expected weights of {self.name}, which is {self.core}, got weights that "
                f"are {found.operator.core}"
            )
        return found

    @property
    def _least_iterations(self) -> int:
        return self._trained().operator.n_steps

    def _iterated(
        self, samples: engine.Samples, run: Run, random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """A pass that is whole has done all that it should: it has no rule to stop by."""
        for step in super()._iterated(samples, run, random_state):
            if not step.n_iter == self.max_iter == self._least_iterations:
                yield step
                continue
            rose = step.lower_bound >= step.lower_bounds[0]
            if not rose:
                warnings.warn(
                    f"{self.name} ended at a log-likelihood of {step.lower_bound:.4g} nat per "
                    f"sample, below its start's {step.lower_bounds[0]:.4g}: these data are unlike "
                    "what it has learned from; use em, or max_iter=100 to go on with EM",
                    DivergenceWarning,
                    stacklevel=4,
                )
            yield step._replace(converged=rose)

    def _steps(
        self, samples: engine.Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        data, start = placed(samples), mixtures_of(samples, parameters)
        # Shallow: a fit has its own reg_covar and shares the weights.
        operator = copy(self._trained(start.means.dtype, start.means.device).operator)
        operator.reg_covar = self.reg_covar
        n_samples = float(samples.total_weight)
        steps = operator.steps(data, start)
        for n_iter in itertools.count(1):
            with torch.no_grad():
                log_likelihood, mixtures = next(steps)
                # Learned steps may fall: a pass is judged by what it ends at.
                if n_iter == self.max_iter == operator.n_steps:
                    log_likelihood, _ = e_step(data, mixtures)
            yield log_likelihood.item() / n_samples, parameters_of(samples, mixtures)


class AmortisedEM(LearnedEM):
    """EM learned over many datasets, so that a pass of five steps fits an unseen one; full only.

    In each step a network that knows nothing of n_samples, n_features or n_components tilts the
    responsibilities of EM, stretches its steps and shrinks its covariances (`FeedForwardStep`), so
    that few steps get where EM needs many, and covariances of few samples are less wrong than those
    of maximum likelihood.
    It was trained once, on mixtures drawn at random, for the likelihood of samples that the fit has
    not seen; what that took is in ``training_seconds``. On data unlike these it may be worse
    than EM: nothing promises a likelihood that rises. Iterations after the learned ones are EM's,
    which does, and ends at a maximum of the likelihood of the samples at hand.

    Leaves out the other covariance families. ``converged_`` is True after a whole pass, which has
    no rule to stop by.

    Args:
        n_components: Number of components.
        checkpoint: Path of weights that `embench train amortised-em` wrote; those that come with
            embench by default.
        max_iter: Steps in all; those beyond the learned ones are EM's.
        tol: EM's steps end when one gains less [nat].
        init_params: "spherical" for the start of the training, k-means++ points with the mean
            variance of X; the others are those of `em`.
        covariance_type: "full".

    The others are those of `em`.

    Source:
        Algorithm unrolling (Monga, Li and Eldar, 2021) by an operator that is invariant under
        affine maps; regularisation as of Friedman (1989).

    Example:
        >>> X = np.random.default_rng(0).normal([[0.0], [10.0]], size=(2, 200)).reshape(-1, 1)
        >>> model = AmortisedEM(n_components=2, random_state=0).fit(X)
        >>> sorted(model.means_[:, 0].round(0).tolist()), model.n_iter_
        ([0.0, 10.0], 5)
    """

    name = "amortised-em"
    core = "feed-forward"


class RecurrentEM(LearnedEM):
    """RNN-EM on point sets: a GRU, learned over many datasets, for an M-step; full only.

    The E-step is EM's; then a recurrent network that all components and all steps share sees what
    responsibilities say of each component's residuals and decides how far mean, covariance and
    weight move (`RecurrentMStep`). Everything else, the parameters too, is as in `amortised-em`.

    Source:
        Greff, van Steenkiste and Schmidhuber (2017), Neural expectation maximization, section 3.2,
        where the network is fed images; here any number of samples and features.

    Example:
        >>> X = np.random.default_rng(0).normal([[0.0], [10.0]], size=(2, 200)).reshape(-1, 1)
        >>> model = RecurrentEM(n_components=2, random_state=0).fit(X)
        >>> sorted(model.means_[:, 0].round(0).tolist()), model.n_iter_
        ([0.0, 10.0], 5)
    """

    name = "recurrent-em"
    core = "recurrent"


@lru_cache(maxsize=8)
def _loaded(
    path: Path, changed: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Checkpoint:
    """A file is read again only if it has changed."""
    found = Checkpoint.load(path)
    found.operator.to(device, dtype)
    return found
