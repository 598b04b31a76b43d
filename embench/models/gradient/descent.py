"""``gd`` and ``gd-closed-form``: Gaussian mixtures by gradient descent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from embench.models.base import DivergenceWarning
from embench.models.engine import Arrays, Frame, Parameters, Samples, mean_and_covariance, split
from embench.models.gradient.coordinates import completed, factored, to_coordinates
from embench.models.gradient.likelihood import Components
from embench.models.gradient.mitigation import (
    MITIGATIONS,
    SingularityWarning,
    collapsed_components,
    log_prior,
)
from embench.models.gradient.objective import (
    Likelihood,
    Objective,
    by_autograd,
    in_closed_form,
)
from embench.models.steps import CovarianceType, MixtureByEM, Run
from embench.models.variants.prior import conjugate_prior
from embench.types import FloatArray

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
"""Beside "lbfgs", which has no learning rates and wants all samples."""

LINE_SEARCH = 25
"""Most evaluations of one line search."""

POSITIVE = [Interval(Real, 0, None, closed="neither")]


class GradientMixture(MixtureByEM):
    """Gradient descent on the likelihood, by autograd: six covariance families.

    Minimises the mean negative log-likelihood -1/n sum_i log sum_k w_k N(x_i; mu_k, S_k) in free
    numbers: logits of the weights, means, and of each covariance the regression of every feature on
    those before it (`Coordinates`). Rates are steps in standard deviations of the components, so
    that rescaled data give the rescaled mixture, and both fall to 0 along a cosine.

    Leaves out constraints and, but for "lbfgs", line searches: the likelihood may fall in between,
    and the best mixture on the way is kept, if need be the start. ``lower_bound_`` is its mean
    log-likelihood, ``loss_`` the negative of that, and ``lower_bounds_`` that of the mixture
    *after* each iteration. ``n_mitigations_`` counts how often a component was found collapsed.
    Reads no files; memory maps are loaded whole.

    Args:
        n_components: Number of components.
        covariance_type: "full", "tied", "diag" (or "diagonal"), "spherical" ("isotropic"),
            "tied_spherical" ("shared_isotropic") or "constant": 1 [u^2].
        optimizer: "adam", "adamw" (which draws all numbers a little towards 0, one round Gaussian),
            "sgd" or "lbfgs" (with strong Wolfe conditions).
        mixture_lr, component_lr: Learning rates of the logits, and of means and covariances; not
            used by "lbfgs".
        schedule: "cosine" or "constant", of both.
        max_iter: Largest number of passes over the samples, which is one step each where
            ``batch_size`` is None.
        batch_size: Largest number of samples per step; every pass cuts all of them anew into
            parts of one size, give or take a sample. None for one part.
        tol: Ends when no entry of the gradient of the loss is larger [nat], in the coordinates
            descended in. With batches all passes are done, and it has converged if the last one
            has changed the loss by no more.
        init: "kmeans", "k-means++", "random" or "random_from_data" as in EM, or "uniform": equal
            weights, unit covariances [u^2] and means in [-radius, radius].
        radius: Of "uniform" [u].
        standardize: False: learning rates are in units of X. "lbfgs" knows no rates.
        mitigation: What becomes of a component whose standard deviation, in some feature given the
            features before it, falls below ``min_stddev``. "clamp": it stays there. "reset": it
            begins anew at a sample, as wide as the data. "map": a conjugate prior keeps it wider
            from the beginning, the loss is the negative log-posterior, and the optimum that of
            `map-em`; it needs ``standardize``.
        min_stddev: See there [u].
        prior_strength: Of "map", as in `map-em`.
        reg_covar: Of the start alone [u^2].
        n_init, weights_init, means_init, precisions_init, random_state, warm_start, verbose,
            verbose_interval, device, dtype: As in `em`.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, sections 5.6 and 9.2.1; Kingma and
        Ba (2015), Adam; Loshchilov and Hutter (2019), AdamW; (2017), SGDR, eq. 5: the cosine.

    Example:
        >>> X = np.random.default_rng(0).normal([[0.0], [10.0]], size=(2, 200)).reshape(-1, 1)
        >>> gd = GradientMixture(n_components=2, random_state=0).fit(X)
        >>> sorted(gd.means_[:, 0].round(0).tolist())
        [0.0, 10.0]
    """

    version: ClassVar[str] = f"{MixtureByEM.version}, torch {torch.__version__}"

    late_imports: ClassVar[tuple[str, ...]] = ("torch._dynamo",)
    """What a first fit imports: torch's optimisers take a second to get going."""

    in_memory = True

    @property
    def _likelihood(self) -> Likelihood:
        """Where gradients come from."""
        return by_autograd

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "optimizer": [StrOptions({*OPTIMIZERS, "lbfgs"})],
        "mixture_lr": POSITIVE,
        "component_lr": POSITIVE,
        "schedule": [StrOptions({"cosine", "constant"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "init": [StrOptions({"kmeans", "k-means++", "random", "random_from_data", "uniform"})],
        "radius": POSITIVE,
        "standardize": ["boolean"],
        "mitigation": [StrOptions(set(MITIGATIONS))],
        "min_stddev": POSITIVE,
        "prior_strength": POSITIVE,
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: CovarianceType = "full",
        optimizer: Literal["adam", "adamw", "sgd", "lbfgs"] = "adam",
        mixture_lr: float = 0.05,
        component_lr: float = 0.05,
        schedule: Literal["cosine", "constant"] = "cosine",
        max_iter: int = 500,
        batch_size: int | None = None,
        tol: float = 1e-4,
        init: Literal["kmeans", "k-means++", "random", "random_from_data", "uniform"] = "kmeans",
        radius: float = 8.0,
        standardize: bool = True,
        mitigation: Literal["clamp", "reset", "map"] = "clamp",
        min_stddev: float = 1e-6,
        prior_strength: float = 1.0,
        reg_covar: float = 1e-6,
        n_init: int = 1,
        weights_init: FloatArray | None = None,
        means_init: FloatArray | None = None,
        precisions_init: FloatArray | None = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        device: Literal["cpu", "cuda", "auto"] = "cpu",
        dtype: Literal["auto", "float64", "float32"] = "auto",
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.optimizer = optimizer
        self.mixture_lr = mixture_lr
        self.component_lr = component_lr
        self.schedule = schedule
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.tol = tol
        self.init = init
        self.radius = radius
        self.standardize = standardize
        self.mitigation = mitigation
        self.min_stddev = min_stddev
        self.prior_strength = prior_strength
        self.reg_covar = reg_covar
        self.n_init = n_init
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.device = device
        self.dtype = dtype

    @property
    def loss_(self) -> float:
        """Loss of the fitted parameters per sample [nat]: ``-lower_bound_``."""
        return -float(self.lower_bound_)

    @property
    def init_params(self) -> str:
        """What scikit-learn's code calls ``init``."""
        return self.init

    def _validated(self, X: FloatArray, *rest: Any, **how: Any) -> Any:
        found = super()._validated(X, *rest, **how)
        if self.optimizer == "lbfgs" and self.batch_size is not None:
            raise ValueError(
                f"optimizer='lbfgs' needs all samples in every step, got batch_size="
                f"{self.batch_size}: use batch_size=None or another optimizer"
            )
        if self.mitigation == "map" and not self.standardize:
            raise ValueError(
                "mitigation='map' has its prior in standardised data: standardize=True"
            )
        return found

    def _framed(self, X: FloatArray, sample_weight: FloatArray | None) -> Samples:
        if self.standardize:
            return super()._framed(X, sample_weight)
        family = self._family
        mean, _ = mean_and_covariance(X, sample_weight, diagonal=not family.is_rotated)
        identity = family.identity(X.shape[1])
        arrays = Arrays.on(self._device(), X.dtype.name)
        return Samples.within(Frame(family, mean, identity, identity), arrays, X, sample_weight)

    def _start(self, X: FloatArray, *rest: Any) -> Parameters:
        given = (self.weights_init, self.means_init, self.precisions_init)
        if self.init != "uniform" or all(part is not None for part in given):
            return super()._start(X, *rest)
        if any(part is not None for part in given):
            raise ValueError(
                "init='uniform': expected all of weights_init, means_init and precisions_init, or "
                "none of them"
            )
        K, D, random_state = self.n_components, X.shape[1], rest[-1]
        covariances = self._family.round_covariances(K, D)
        return Parameters(
            np.full(K, 1 / K),
            random_state.uniform(-self.radius, self.radius, size=(K, D)),
            covariances,
            covariances,
        )

    def _fitting(
        self, X: FloatArray, sample_weight: FloatArray | None
    ) -> tuple[Samples, Iterator[Run]]:
        fitting = super()._fitting(X, sample_weight)
        self.n_mitigations_ = 0
        return fitting

    def _iterated(
        self, samples: Samples, run: Run, random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """A run after each pass over the samples, with its own log-likelihood."""
        objective = self._objective(samples, run.parameters)
        highest = before = -np.inf
        n_collapsed = self.n_mitigations_
        for n_iter, loss in enumerate(self._descended(objective, random_state)):
            if self.mitigation == "reset" and self.n_mitigations_ > n_collapsed:
                # What was nearly collapsed looked best, and is not to be gone back to.
                highest, n_collapsed = -np.inf, self.n_mitigations_
            if -loss > highest:
                # Without covariances: a fit wants those of its last mixture alone.
                best, highest = factored(objective.coordinates, samples.family), -loss
            if n_iter > 0:
                if self.batch_size is None:
                    arrived = objective.steepness <= self.tol
                else:
                    arrived = n_iter == self.max_iter and abs(-loss - before) <= self.tol
                converged = arrived and highest + loss <= self.tol
                run = Run(best, highest, (*run.lower_bounds, -loss), n_iter, converged)
                self._print_verbose_msg_iter_end(n_iter, -loss - before)
                yield run
                if arrived:
                    return
            before = -loss

    def _objective(self, samples: Samples, start: Parameters) -> Objective:
        coordinates = to_coordinates(start, samples.family)
        scales = torch.tensor(samples.frame.scales)[: coordinates.log_stddevs.shape[1], None]
        smallest = self.min_stddev if samples.family.is_learned else 0.0
        floor = torch.log(smallest / scales)
        prior: Callable[[Components], Tensor] | None = None
        if self.mitigation == "map":
            shape = start.means.shape
            numbers = conjugate_prior(samples.family, *shape, strength=self.prior_strength)

            def prior(mixture: Components) -> Tensor:
                return log_prior(numbers, mixture) / float(samples.total_weight)

        # A line search needs numbers that stay the same from step to step.
        own_scales = self.standardize and self.optimizer != "lbfgs"
        return Objective(coordinates, samples, self._likelihood, floor, own_scales, prior)

    def _descended(
        self, objective: Objective, random_state: np.random.RandomState
    ) -> Iterator[float]:
        """The loss at the start and after each pass, with the objective at the coordinates."""
        optimizer = self._optimizer(objective)
        scheduler = CosineAnnealingLR(optimizer, self.max_iter) if self._anneals else None
        # A line search asks again for points that it has seen; other steps never do.
        evaluate = objective.remembered if self.optimizer == "lbfgs" else objective.evaluate
        yield evaluate()
        for _ in range(self.max_iter):
            before = objective.snapshot
            self._pass(objective, optimizer, random_state)
            if scheduler:
                scheduler.step()
            n_collapsed = self._mitigate(objective, optimizer, random_state)
            loss = evaluate()
            if not np.isfinite(loss):
                objective.restore(before)
                warnings.warn(
                    f"the loss became {loss} after a step; what it was before is kept: try smaller "
                    "learning rates",
                    DivergenceWarning,
                    stacklevel=2,
                )
                return
            self.n_mitigations_ += n_collapsed
            yield loss
            if self.optimizer == "lbfgs" and _same(before, objective.coordinates):
                if not optimizer.state:
                    return  # not even the way down leads anywhere that rounding can tell
                optimizer.state.clear()

    @property
    def _anneals(self) -> bool:
        return self.schedule == "cosine" and self.optimizer != "lbfgs"

    def _optimizer(self, objective: Objective) -> Optimizer:
        if self.optimizer == "lbfgs":
            return LBFGS(
                objective.free,
                max_iter=1,
                max_eval=LINE_SEARCH,  # by default 5/4 of max_iter, which leaves nothing to search
                tolerance_grad=0,
                tolerance_change=0,
                line_search_fn="strong_wolfe",
            )
        logits, *others = objective.free
        groups = [
            {"params": [logits], "lr": self.mixture_lr},
            {"params": others, "lr": self.component_lr},
        ]
        return OPTIMIZERS[self.optimizer](groups, fused=True)

    def _pass(
        self, objective: Objective, optimizer: Optimizer, random_state: np.random.RandomState
    ) -> None:
        """One step, or one for each batch; the gradient at the coordinates is there already."""
        samples = objective.samples
        if self.batch_size is None:
            if self.optimizer == "lbfgs":
                optimizer.step(objective.remembered)
            else:
                objective.descend(optimizer)
            return
        order = random_state.permutation(samples.n_samples)
        parts = list(split(samples.n_samples, self.batch_size))
        for rows in parts:
            batch = samples.take(order[rows])
            share = len(parts) * float(batch.total_weight / samples.total_weight)
            objective.evaluate_batch(batch, share)
            objective.descend(optimizer)

    @torch.no_grad()
    def _mitigate(
        self, objective: Objective, optimizer: Optimizer, random_state: np.random.RandomState
    ) -> int:
        """Do something about components that collapsed; how many of them."""
        coordinates = objective.coordinates
        collapsed = collapsed_components(coordinates, objective.floor)
        if collapsed.any():
            MITIGATIONS[self.mitigation](coordinates, collapsed, objective.samples, random_state)
            objective.settle()
            if self.mitigation == "reset" or self.optimizer == "lbfgs":
                optimizer.state.clear()  # what it remembers is about components that are gone
        return int(collapsed.sum())

    def _outward(self, frame: Frame, parameters: Parameters) -> Parameters:
        return super()._outward(frame, completed(parameters, frame.family))

    def _warn_of_end(self, converged: bool, parameters: Parameters, samples: Samples) -> None:
        super()._warn_of_end(converged, parameters, samples)
        if self.n_mitigations_:
            warnings.warn(
                f"components collapsed {self.n_mitigations_} times to standard deviations below "
                f"min_stddev = {self.min_stddev:g}; mitigation={self.mitigation!r} dealt with them",
                SingularityWarning,
                stacklevel=3,
            )


def _same(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


class ClosedFormMixture(GradientMixture):
    """Gradient descent on the likelihood with gradients derived by hand: no graph, fewer passes.

    The same descent as `gd`, to rounding, from the statistics of an E-step (`ClosedFormNLL`).
    Parameters and attributes are those of `gd`.

    Source:
        Xu and Jordan (1996), On convergence properties of the EM algorithm for Gaussian mixtures,
        theorem 1.

    Example:
        >>> X = np.random.default_rng(0).normal([[0.0], [10.0]], size=(2, 200)).reshape(-1, 1)
        >>> gd = ClosedFormMixture(n_components=2, optimizer="lbfgs", random_state=0).fit(X)
        >>> sorted(gd.means_[:, 0].round(0).tolist())
        [0.0, 10.0]
    """

    @property
    def _likelihood(self) -> Likelihood:
        return in_closed_form
