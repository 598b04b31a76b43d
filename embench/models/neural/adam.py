"""Adam without what torch's own looks up at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Adam:
    """torch's fused Adam, with its numbers: for networks so small, half of a step is looking up.

    Args:
        parameters: What to change, in place; each has a gradient when `step` is called.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._means, self._squares = (
            [torch.zeros_like(one, requires_grad=False) for one in parameters] for _ in range(2)
        )
        self._count = torch.zeros(())

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Go one step, with this learning rate."""
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        self._count += 1
        torch._fused_adam_(
            self._parameters,
            gradients,
            self._means,
            self._squares,
            [],
            [self._count] * len(gradients),
            lr=lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {"means": self._means, "squares": self._squares, "count": self._count}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        for name, own in self.state().items():
            pairs = [(own, state[name])] if name == "count" else zip(own, state[name], strict=True)
            for mine, other in pairs:
                mine.copy_(other)
