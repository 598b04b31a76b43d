"""What is descended: the mean negative log-likelihood, by autograd or in closed form."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embench.models.engine import Samples, split
from embench.models.gradient.closed_form import ClosedFormNLL
from embench.models.gradient.likelihood import (
    Components,
    Coordinates,
    Whitening,
    components,
    log_joint_of,
    whitening,
)

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


class Objective:
    """A loss of `Coordinates` that remembers where it has just been.

    Args:
        coordinates: The numbers to be optimised in place, float64 on the CPU.
        samples: All of the data in their frame.
        likelihood: How to differentiate.
        log_stddev_floor: Smallest ``log_stddevs`` that are taken at their word, [S, 1].
        log_prior: Of a mixture, divided by the number of samples [nat]; None for none.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        samples: Samples,
        likelihood: Likelihood,
        log_stddev_floor: Tensor,
        log_prior: Callable[[Components], Tensor] | None = None,
    ) -> None:
        self.coordinates, self.samples, self.likelihood = coordinates, samples, likelihood
        self.floor, self.log_prior = log_stddev_floor, log_prior
        self._known: OrderedDict[bytes, tuple[float, list[Tensor]]] = OrderedDict()

    @property
    def free(self) -> Sequence[Tensor]:
        """The coordinates that are optimised."""
        return [part for part in self.coordinates if part.requires_grad]

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
        """The same for some of the samples, times ``share``."""
        for part in self.free:
            part.grad = torch.zeros_like(part)
        bounded = self._bounded()
        loss = self.likelihood(bounded, batch)
        if self.log_prior is not None:
            loss = loss - self.log_prior(components(bounded))
        (share * loss).backward()
        return loss.item()

    def _bounded(self) -> Coordinates:
        """No deviation below the floor: a line search may look there, and would find infinities."""
        log_stddevs = self.coordinates.log_stddevs.clamp(min=self.floor)
        return self.coordinates._replace(log_stddevs=log_stddevs)


def _shares(samples: Samples) -> Tensor:
    """What each sample counts in a mean, [n_samples]."""
    if samples.weights is None:
        dtype = getattr(torch, samples.arrays.dtype)
        one = torch.ones(1, dtype=dtype, device=samples.arrays.device)
        return (one / samples.n_samples).expand(samples.n_samples)
    return torch.as_tensor(samples.weights) / float(samples.total_weight)
