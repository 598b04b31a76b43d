"""What is descended: the mean negative log-likelihood, by autograd or in closed form."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from embench.models.engine import Samples, split
from embench.models.gradient.closed_form import ClosedFormNLL
from embench.models.gradient.likelihood import Components, Coordinates, components, log_joint

REMEMBERED = 4
"""Evaluations that are kept: a line search comes back to the best of its last points."""

GRAPH = 8
"""Numbers that a graph keeps for each whitened one: what a chunk is made small for."""

Likelihood = Callable[[Components, Samples], Iterator[Tensor]]
"""Terms that add up to the mean negative log-likelihood of samples [nat]. Each can be
differentiated by itself, so that no graph outlives its chunk."""


def by_autograd(mixture: Components, samples: Samples) -> Iterator[Tensor]:
    """One term for each chunk of the samples, from torch's own gradients."""
    n_components, n_features = mixture.means.shape[:2]
    Y, total = torch.as_tensor(samples.Y), float(samples.total_weight)
    weights = None if samples.weights is None else torch.as_tensor(samples.weights)
    room = samples.arrays.room(GRAPH * n_components * (n_features + 1))
    yield torch.as_tensor(float(samples.frame.log_scale))
    for rows in split(samples.n_samples, room):
        log_density = log_joint(Y[:, rows], mixture).logsumexp(0)
        weighted = log_density if weights is None else log_density * weights[rows]
        yield -weighted.sum() / total


def in_closed_form(mixture: Components, samples: Samples) -> Iterator[Tensor]:
    """A single term; see `ClosedFormNLL`."""
    yield ClosedFormNLL.apply(*mixture, samples)


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
        """Largest entry of the gradient, as evaluated last [nat]."""
        return max(float(part.grad.abs().max()) for part in self.free if part.grad is not None)

    def evaluate(self) -> float:
        """Loss of all samples at the coordinates [nat]; the gradient is left in their ``grad``."""
        here = b"".join(part.detach().numpy().tobytes() for part in self.coordinates)
        if here not in self._known:
            loss = self.evaluate_batch(self.samples)
            gradients = [part.grad for part in self.free if part.grad is not None]
            self._known[here] = loss, [gradient.clone() for gradient in gradients]
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        loss, gradients = self._known[here]
        for part, gradient in zip(self.free, gradients, strict=True):
            part.grad = gradient.clone()
        return loss

    def evaluate_batch(self, batch: Samples, share: float = 1.0) -> float:
        """The same for some of the samples, times ``share``."""
        for part in self.free:
            part.grad = torch.zeros_like(part)
        mixture = components(self._bounded())
        leaves = Components(*(_leaf(part, batch) for part in mixture))
        loss = 0.0
        for term in self.likelihood(leaves, batch):
            loss += term.item()
            if term.requires_grad:
                (share * term).backward()
        pairs = [
            (part, leaf) for part, leaf in zip(mixture, leaves, strict=True) if leaf.requires_grad
        ]
        ends = [part for part, _ in pairs]
        gradients = [leaf.grad.to(part) for part, leaf in pairs if leaf.grad is not None]
        if self.log_prior is not None:
            penalty = -self.log_prior(mixture)
            loss += penalty.item()
            ends, gradients = [*ends, share * penalty], [*gradients, torch.ones_like(penalty)]
        torch.autograd.backward(ends, gradients)
        return loss

    def _bounded(self) -> Coordinates:
        """No deviation below the floor: a line search may look there, and would find infinities."""
        log_stddevs = self.coordinates.log_stddevs.clamp(min=self.floor)
        return self.coordinates._replace(log_stddevs=log_stddevs)


def _leaf(part: Tensor, samples: Samples) -> Tensor:
    """A part of a mixture where and in the precision that the samples have."""
    arrays = samples.arrays
    dtype = getattr(torch, np.dtype(arrays.dtype).name)
    moved = part.detach().to(device=arrays.device, dtype=dtype)
    return moved.requires_grad_(part.requires_grad)
