"""``unrolled-em``: the EM layer as an estimator, trained on the data at hand."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch.optim import Adam

from embench.models import engine
from embench.models.engine.family import IllDefinedCovariance
from embench.models.steps import MixtureByEM, Run
from embench.models.unrolled.bridge import mixtures_of, parameters_of, placed
from embench.models.unrolled.em_map import Mixtures, Samples, e_step, em_map
from embench.models.unrolled.layer import EMLayer

REST = 1e-10
"""EM rests where ``n_steps`` steps of it gain less [nat]."""


class UnrolledEM(MixtureByEM):
    """A few steps of EM with learned corrections, trained on the data at hand: full only.

    Minimises the negative log-likelihood of an `EMLayer`'s mixture by Adam, from the start of
    `em`. Before it EM goes from the same start to its end, and the best mixture of both is kept:
    a fit never ends below EM. Each iteration is one step of training and costs ``n_steps`` EM steps
    forward and about twice as much backward.

    On one dataset such a layer ties EM, at many times the cost, or now and then finds another
    optimum, of a likelihood that is higher on the samples at hand, if not on others; it earns its
    keep trained over many datasets (`amortised-em`). Leaves out mini-batches and the other
    covariance families. ``lower_bound_`` is the mean log-likelihood of the best mixture so far,
    ``lower_bounds_`` that of the layer's own after each iteration.

    Args:
        n_components: Number of components.
        n_steps: Unrolled steps of EM, T.
        max_iter: Largest number of steps of training.
        lr: Learning rate of Adam.
        hidden: Width of the networks of the corrections.
        shared: One network for all steps, instead of one for each.
        correct_logits: Whether the weights are corrected, too.
        tol: Ends when no entry of the gradient of the mean log-likelihood is larger [nat].
        reg_covar: Added to the variances by every EM step; no correction narrows a component
            below [u^2].
        covariance_type: "full".

    The others are those of `em`.

    Source:
        A published demonstration of EM as a layer: loss -log_likelihood.mean(), Adam; Monga, Li and
        Eldar (2021), Algorithm unrolling.

    Example:
        >>> X = np.random.default_rng(0).normal([[0.0], [10.0]], size=(2, 200)).reshape(-1, 1)
        >>> model = UnrolledEM(n_components=2, random_state=0).fit(X)
        >>> sorted(model.means_[:, 0].round(0).tolist())
        [0.0, 10.0]
    """

    version: ClassVar[str] = f"{MixtureByEM.version}, torch {torch.__version__}"

    late_imports: ClassVar[tuple[str, ...]] = ("torch._dynamo",)
    """What a first fit imports: torch's optimisers take a second to get going."""

    in_memory = True

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureByEM._parameter_constraints,
        "covariance_type": [StrOptions({"full"})],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "hidden": [Interval(Integral, 1, None, closed="left")],
        "shared": ["boolean"],
        "correct_logits": ["boolean"],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        n_steps: int = 5,
        max_iter: int = 400,
        lr: float = 3e-3,
        hidden: int = 32,
        shared: bool = False,
        correct_logits: bool = True,
        tol: float = 1e-5,
        covariance_type: Literal["full"] = "full",
        **common: Any,
    ) -> None:
        super().__init__(
            n_components,
            max_iter=max_iter,
            tol=tol,
            covariance_type=covariance_type,
            **common,
        )
        self.n_steps = n_steps
        self.lr = lr
        self.hidden = hidden
        self.shared = shared
        self.correct_logits = correct_logits

    def _iterated(
        self, samples: engine.Samples, run: Run, random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """The best mixture so far after each step of training, and the layer's likelihoods."""
        data, start = placed(samples), mixtures_of(samples, run.parameters)
        layer = EMLayer(
            samples.n_features,
            self.n_components,
            self.n_steps,
            hidden=self.hidden,
            shared=self.shared,
            correct_logits=self.correct_logits,
            reg_covar=self.reg_covar,
            random_state=random_state.randint(2**31),
        ).to(start.means)
        learned = list(layer.corrections.parameters())
        optimizer = Adam(learned, lr=self.lr)
        n_samples = float(samples.total_weight)
        for _ in range(self.max_iter):
            try:
                log_likelihood, _, fitted = layer.unrolled(data, start)
                if run.n_iter == 0:
                    em = self._em_at_rest(data, start)
                    run = run._replace(lower_bound=e_step(data, em)[0].item() / n_samples)
                    found = parameters_of(samples, em)
            except IllDefinedCovariance:
                if run.n_iter == 0:  # of EM itself
                    raise
                return
            optimizer.zero_grad()
            (-log_likelihood.mean()).backward()
            before, mean = run.lower_bound, log_likelihood.item() / n_samples
            if mean > before:
                found = parameters_of(samples, fitted)
            steepness = max(
                float(part.grad.abs().max()) for part in learned if part.grad is not None
            )
            run = Run(
                found,
                max(before, mean),
                (*run.lower_bounds, mean),
                run.n_iter + 1,
                converged=steepness <= self.tol * n_samples,
            )
            self._print_verbose_msg_iter_end(run.n_iter, run.lower_bound - before)
            yield run
            if run.converged or not np.isfinite(steepness):
                return
            optimizer.step()

    @torch.no_grad()
    def _em_at_rest(self, data: Samples, mixtures: Mixtures) -> Mixtures:
        """Where EM ends, after no more steps than all of the training takes."""
        before = -np.inf
        for _ in range(self.max_iter):
            for _ in range(self.n_steps):
                log_likelihood, mixtures = em_map(data, mixtures, self.reg_covar)
            mean = log_likelihood.item() / data.n_samples.item()
            if mean - before < REST:
                break
            before = mean
        return mixtures
