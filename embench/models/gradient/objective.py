"""What is descended: the mean negative log-likelihood, by autograd or in closed form."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_
from torch.optim import Optimizer

from embench.models.engine import Samples, split
from embench.models.engine.linalg import triangular_inverses
from embench.models.gradient.closed_form import ClosedFormNLL
from embench.models.gradient.coordinates import factored
from embench.models.gradient.likelihood import (
    Components,
    Coordinates,
    Whitening,
    components,
    log_joint_of,
    whitening,
)
from embench.models.variants.coordinates import LARGEST_LOG

REMEMBERED = 4
"""Evaluations that are kept: a line search comes back to the best of its last points."""

GRAPH = 6
"""Numbers that a graph keeps for each whitened one: what a chunk is made small for."""

Likelihood = Callable[[Coordinates, Samples], Tensor]
"""Mean negative log-likelihood of samples [nat], differentiable in the free numbers of one mixture
in their frame."""


def by_autograd(coordinates: Coordinates, samples: Samples) -> Tensor:
    """Torch's own gradients, chunk by chunk."""
    arrays = samples.arrays
    there = {"device": arrays.device, "dtype": getattr(torch, arrays.dtype)}
    form = whitening(components(coordinates))
    return ChunkedNLL.apply(samples, *(part.to(**there) for part in form))


def in_closed_form(coordinates: Coordinates, samples: Samples) -> Tensor:
    """Gradients derived by hand; see `ClosedFormNLL`."""
    return ClosedFormNLL.apply(*coordinates, samples)


class ChunkedNLL(torch.autograd.Function):
    """Mean negative log-likelihood [nat] of samples by autograd, one chunk after another.

    No graph outlives its chunk: going forward leaves the gradient, and memory does not grow with
    the samples. ``apply(samples, *whitening(mixture))``; the mixture has the samples' dtype.
    """

    @staticmethod
    def forward(ctx: Any, samples: Samples, *form: Tensor) -> Tensor:
        leaves = Whitening(*(part.detach().requires_grad_() for part in form))
        n_components, n_features = leaves.means.shape[:2]
        Y, shares = torch.as_tensor(samples.Y), _shares(samples)
        room = samples.arrays.room(GRAPH * n_components * (n_features + 1))
        loss = float(samples.frame.log_scale)
        with torch.enable_grad():
            for rows in split(samples.n_samples, room):
                log_density = log_joint_of(Y[:, rows], leaves).logsumexp(0)
                log_density.backward(-shares[rows])
                loss -= torch.dot(log_density.detach(), shares[rows]).item()
        ctx.gradients = [leaf.grad for leaf in leaves]
        return form[0].new_tensor(loss, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        [scale] = upstream
        return None, *(None if part is None else scale.to(part) * part for part in ctx.gradients)


STEEPEST = 1.0
"""Largest entry of a gradient in deviations of the components. Where they fit, none is larger.
Where a component begins much too tight, some are a million times as large, and Adam would remember
that for hundreds of steps and make them a millionth of what they should be."""


class Objective:
    """A loss of `Coordinates` that remembers where it has just been.

    With ``own_scales`` a step moves a mean by so many standard deviations of its own component, not
    of the data: what is optimised in place of the means are steps from where they are.

    Args:
        coordinates: The numbers to be optimised in place, float64 on the CPU.
        samples: All of the data in their frame.
        likelihood: How to differentiate.
        log_stddev_floor: Smallest ``log_stddevs`` that are taken at their word, [S, 1].
        own_scales: Whether steps of means are in deviations of the components.
        log_prior: Of a mixture, divided by the number of samples [nat]; None for none.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        samples: Samples,
        likelihood: Likelihood,
        log_stddev_floor: Tensor,
        own_scales: bool = False,
        log_prior: Callable[[Components], Tensor] | None = None,
    ) -> None:
        self.coordinates, self.samples, self.likelihood = coordinates, samples, likelihood
        self.floor, self.log_prior = log_stddev_floor, log_prior
        self._known: OrderedDict[bytes, tuple[float, list[Tensor]]] = OrderedDict()
        logits, means, log_stddevs, coefficients = coordinates
        self.steps = torch.zeros_like(means) if own_scales else None
        learned = (log_stddevs, coefficients) if samples.family.is_learned else ()
        candidates = (logits, means if self.steps is None else self.steps, *learned)
        self.free = [part.requires_grad_() for part in candidates if part.numel()]
        self._scale = self._deviations()

    def descend(self, optimizer: Optimizer) -> None:
        """A step down the gradient that `evaluate` has left."""
        if self.steps is not None:
            clip_grad_value_(self.free, STEEPEST)
        optimizer.step()
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Take the steps of the means; the next ones are in deviations that the components have
        now."""
        if self.steps is None:
            return
        self.coordinates.means.add_(self._scaled(self.steps))
        self.steps.zero_()
        self._scale = self._deviations()

    @property
    def snapshot(self) -> list[Tensor]:
        """A copy of the coordinates."""
        return [part.detach().clone() for part in self.coordinates]

    @torch.no_grad()
    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Go back to where a copy was taken."""
        for part, old in zip(self.coordinates, snapshot, strict=True):
            part.copy_(old)

    @property
    def steepness(self) -> float:
        """Largest entry of the gradient, as evaluated last [nat]; what only pulls deviations on the
        floor further down does not count."""
        largest = 0.0
        for part in self.free:
            assert part.grad is not None
            gradient = part.grad.numpy()
            if part is self.coordinates.log_stddevs:
                on_floor = part.detach().numpy() <= self.floor.numpy()
                gradient = np.where(on_floor, np.minimum(gradient, 0.0), gradient)
            largest = max(largest, float(np.abs(gradient).max()))
        return largest

    def remembered(self) -> float:
        """`evaluate`, or what it was where that has just been done."""
        here = b"".join(part.detach().numpy().tobytes() for part in self.coordinates)
        if here not in self._known:
            loss = self.evaluate()
            gradients = [part.grad for part in self.free if part.grad is not None]
            self._known[here] = loss, [gradient.clone() for gradient in gradients]
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        loss, gradients = self._known[here]
        for part, gradient in zip(self.free, gradients, strict=True):
            part.grad = gradient.clone()
        return loss

    def evaluate(self) -> float:
        """Loss of all samples at the coordinates [nat]; the gradient is left in their ``grad``."""
        return self.evaluate_batch(self.samples)

    def evaluate_batch(self, batch: Samples, share: float = 1.0) -> float:
        """The same for some of the samples, times ``share``; infinite where there is no mixture."""
        for part in self.free:
            part.grad = torch.zeros_like(part)
        if not self.coordinates.log_stddevs.detach().numpy().max() < LARGEST_LOG:
            return math.inf
        bounded = self._bounded()
        loss = self.likelihood(bounded, batch)
        if self.log_prior is not None:
            loss = loss - self.log_prior(components(bounded))
        (share * loss).backward()
        return loss.item()

    def _bounded(self) -> Coordinates:
        """No deviation below the floor: a line search may look there, and would find infinities."""
        log_stddevs = self.coordinates.log_stddevs.clamp(min=self.floor)
        means = self.coordinates.means
        if self.steps is not None:
            means = means + self._scaled(self.steps)
        return self.coordinates._replace(means=means, log_stddevs=log_stddevs)

    def _deviations(self) -> Tensor:
        """Cholesky factors of the covariances [C, D, D], or deviations [C, S, 1]."""
        log_stddevs = self.coordinates.log_stddevs.clamp(min=self.floor).clamp(max=LARGEST_LOG)
        bounded = self.coordinates._replace(log_stddevs=log_stddevs)
        factors = factored(bounded, self.samples.family).precisions_cholesky
        C, S, _ = self.coordinates.log_stddevs.shape
        if not self.samples.family.is_rotated:
            return torch.as_tensor(1 / factors.reshape(C, S, 1))
        scale_tril = triangular_inverses(factors.swapaxes(-1, -2))
        return torch.as_tensor(scale_tril.reshape(C, *scale_tril.shape[-2:]))

    def _scaled(self, steps: Tensor) -> Tensor:
        """Steps in deviations as steps of the means, [K, D, 1]."""
        return self._scale @ steps if self.samples.family.is_rotated else self._scale * steps


def _shares(samples: Samples) -> Tensor:
    """What each sample counts in a mean, [n_samples]."""
    if samples.weights is None:
        dtype = getattr(torch, samples.arrays.dtype)
        one = torch.ones(1, dtype=dtype, device=samples.arrays.device)
        return (one / samples.n_samples).expand(samples.n_samples)
    return torch.as_tensor(samples.weights) / float(samples.total_weight)
