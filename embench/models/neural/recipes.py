"""What a training of neural EM depends on, and the sets of it that are known to work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Pixels = Literal["bernoulli", "gaussian"]
Cell = Literal["rnn", "gru", "lstm"]
Coder = Literal["none", "dense", "conv"]
NoiseType = Literal["bitflip", "masked_uniform", "none"]
LossSteps = Literal["all", "late", "last"] | Sequence[float]
Schedule = Literal["constant", "cosine"]
Products = Literal["exact", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """Everything about a model and its training but the images and the seed.

    The fields are the parameters of `RNNEM`, described there.
    """

    n_components: int
    hidden: int
    n_steps: int
    n_test_steps: int
    noise: float
    lr: float
    max_updates: int
    batch_size: int = 64
    n_init: int = 1
    pixels: Pixels = "bernoulli"
    cell: Cell = "rnn"
    encoder: Coder = "none"
    decoder: Coder = "none"
    noise_type: NoiseType = "bitflip"
    noise_end: float | None = None
    kl_weight: float = 1.0
    prior: float = 0.0
    loss_steps: LossSteps = "all"
    gamma_gradient: bool = True
    schedule: Schedule = "constant"
    averaging: float = 0.0
    max_gradient: float | None = None
    products: Products = "exact"

    @property
    def step_weights(self) -> list[float]:
        """What each step counts for in the loss; they sum to 1.

        Raises:
            ValueError: There are not ``n_steps`` weights, or one is negative, or all are 0.

        Example:
            >>> replace(PRESETS["quick"], n_steps=4).step_weights
            [0.25, 0.25, 0.25, 0.25]
            >>> replace(PRESETS["quick"], n_steps=4, loss_steps="late").step_weights
            [0.0, 0.0, 0.5, 0.5]
        """
        if self.loss_steps == "last":
            return [0.0] * (self.n_steps - 1) + [1.0]
        if self.loss_steps in ("all", "late"):
            skipped = self.n_steps // 2 if self.loss_steps == "late" else 0
            counted = self.n_steps - skipped
            return [0.0] * skipped + [1 / counted] * counted
        weights = [float(weight) for weight in self.loss_steps]
        if len(weights) != self.n_steps or min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(
                f"expected loss_steps to be 'all', 'late', 'last' or n_steps={self.n_steps} "
                f"weights >= 0, not all 0, got {self.loss_steps!r}"
            )
        return [weight / sum(weights) for weight in weights]


QUICK = Recipe(
    n_components=2,
    hidden=100,
    n_steps=5,
    n_test_steps=10,
    noise=0.02,
    lr=1e-2,
    batch_size=32,
    schedule="cosine",
    averaging=0.999,
    n_init=4,
    max_updates=3000,
)

PUBLISHED = Recipe(
    n_components=4,
    hidden=250,
    n_steps=15,
    n_test_steps=15,
    noise=0.1,
    loss_steps="last",
    lr=1e-3,
    max_updates=500 * 50_000 // 64,
)

PRESETS: Mapping[str, Recipe] = {
    "quick": QUICK,
    "standard": replace(
        QUICK,
        n_components=3,
        hidden=128,
        n_steps=6,
        n_test_steps=20,
        n_init=8,
        noise=0.1,
        noise_end=0.0,
        max_updates=7000,
    ),
    "gaussian": replace(
        QUICK,
        pixels="gaussian",
        hidden=40,
        kl_weight=0.2,
        noise_type="masked_uniform",
        lr=2e-3,
        max_gradient=1.0,
    ),
    "published": PUBLISHED,
    "published-flying": replace(
        PUBLISHED,
        n_components=3,
        hidden=100,
        n_steps=20,
        n_test_steps=20,
        noise=0.2,
        encoder="conv",
        decoder="conv",
        loss_steps="all",
        gamma_gradient=False,
    ),
}
"""Recipes by name: for two small shapes, three large ones and two in shades of grey on one CPU
core; and those of Greff, van Steenkiste and Schmidhuber (2017) for static and for flying shapes,
but that they end after their largest number of updates: validation loss picks worse groups (see
`RNNEM`)."""

N_EM_PRESETS: Mapping[str, Recipe] = {
    **PRESETS,
    "quick": replace(QUICK, loss_steps="late", noise=0.0, max_updates=1200),
    "gaussian": replace(PRESETS["gaussian"], lr=1e-2),
}
"""The same for `n-em`, but that on "quick" its first steps, poor however it has learned, count for
nothing, that it sees no noise, and that it learns for a shorter time: with 3000 updates, noise and
a loss on all steps a group often holds two objects in the end. "standard" is what suits
`rnn-em`."""
