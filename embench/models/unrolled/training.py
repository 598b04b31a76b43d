"""Training of an operator: over many datasets, once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embench.models.unrolled.em_map import Mixtures, Samples, e_step, framed
from embench.models.unrolled.operators import EMOperator

LEARNING_RATE, RISE = 5e-3, 0.3
"""The largest learning rate of Adam, and the share of the updates in which it is reached."""

EARLIER = 0.5
"""What a mixture counts for in the loss, relative to the one a step later: the last one is what is
asked for, those on the way keep the gradient from having to find it through all steps."""

LARGEST_GRADIENT = 1.0
"""Norm that gradients are cut down to: some datasets are much harder than others."""


class Task(NamedTuple):
    """B datasets of one size: ``X`` [B, N, D] to cluster [u], a ``start`` for each, in units of X,
    and other samples of the same, ``X_new`` [B, M, D], to be judged on."""

    X: Tensor
    X_new: Tensor
    start: Mixtures


class Trainer:
    """Minimises the NLL of samples that the operator has not seen, a task at a time.

    The likelihood of the samples at hand has no upper bound: a component can shrink onto a single
    one of them, and what is trained for that likelihood learns to do so. That of new samples has
    one, and rewards what EM lacks: covariances of few samples that are less wrong.

    Args:
        operator: What to train, in place.
        n_updates: Of all; the learning rate depends on it.
    """

    def __init__(self, operator: EMOperator, n_updates: int) -> None:
        self.operator, self.n_updates = operator, n_updates
        self.done = 0
        self._optimizer = torch.optim.Adam(operator.parameters())

    def update(self, task: Task) -> float:
        """Learn from one task, and return the mean NLL of its new samples [nat].

        An update without a finite gradient changes nothing.
        """
        after_each_step = nlls(self.operator, task, self.operator.n_steps)
        weights = EARLIER ** torch.arange(len(after_each_step) - 1.0, -1.0, -1.0)
        loss = (weights.to(after_each_step) * after_each_step).sum()
        self._optimizer.zero_grad()
        loss.backward()
        size = nn.utils.clip_grad_norm_(self.operator.parameters(), LARGEST_GRADIENT)
        if size.isfinite():
            self._optimizer.param_groups[0]["lr"] = _learning_rate((self.done + 1) / self.n_updates)
            self._optimizer.step()
        self.done += 1
        return after_each_step[-1].item()

    def state(self) -> dict[str, Any]:
        """All that the next update depends on."""
        return {
            "done": self.done,
            "operator": self.operator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, as if there had been no break."""
        self.done = state["done"]
        self.operator.load_state_dict(state["operator"])
        self._optimizer.load_state_dict(state["optimizer"])


def nlls(operator: EMOperator, task: Task, n_steps: int) -> Tensor:
    """Mean NLL of the new samples after each of ``n_steps`` steps, [n_steps] [nat]."""
    samples = framed(task.X, reg_covar=operator.reg_covar)
    unseen = samples.joined_by(task.X_new)
    steps = operator.steps(samples, samples.inward(task.start))
    return torch.stack([_nll(unseen, next(steps)[1]) for _ in range(n_steps)])


def _learning_rate(share: float) -> float:
    """At a share of the updates: up and down again, each half a wave of a cosine."""
    wave = share / RISE if share < RISE else 1 + (share - RISE) / (1 - RISE)
    return LEARNING_RATE * 0.5 * (1 - math.cos(math.pi * wave))


def _nll(samples: Samples, mixtures: Mixtures) -> Tensor:
    """Mean over samples and datasets [nat]."""
    return -(e_step(samples, mixtures)[0] / samples.n_samples).mean()
