"""Training of neural EM: updates by Adam on batches of images, to be stopped and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embench.models.neural.adam import Adam
from embench.models.neural.fused import FusedSteps, is_fusible
from embench.models.neural.networks import MStep, RecurrentMStep
from embench.models.neural.noise import corrupted
from embench.models.neural.recipes import Recipe
from embench.models.neural.unroll import Film, first_responsibilities, frames, loss, still
from embench.types import FloatArray, IntArray

WARM_UP = 0.02
"""Share of the training in which a learning rate that falls rises first."""

SMALLEST_RATE = 1e-3
"""What the rising rate begins above 0 with, in terms of progress."""

EARLY_AVERAGE = 10
"""While few updates are done, averages reach back over a tenth of them."""

AHEAD, N_AHEAD = 2**20, 16
"""At most so many noisy pixels are drawn at once, for so many updates: small batches are drawn
ahead, since calls are most of what one costs, large ones one by one."""

Gradient = Callable[[Film, Tensor], float]
"""Leaves the gradient of the loss in the parameters and returns the loss."""


class Trainer:
    """Minimises the loss of a recipe on images, update by update.

    Noise and first responsibilities of a few updates at a time are drawn by a generator that is
    seeded by their numbers: what comes of a training does not depend on when it was interrupted.

    Args:
        network: What to train, in place.
        recipe: How.
        X: Images (n_images, n_pixels) or sequences (n_sequences, n_frames, n_pixels).
        seed: Of order, noise and first responsibilities.
        cpu_seconds: Ends the training if it comes first, and then the learning rate depends on it.

    Attributes: ``done``, the updates so far; ``averaged``, a network whose weights are running
    averages, or the network itself if the recipe has none; ``gradient``, what leaves the gradient
    of a batch in the parameters: by hand where that can be, else `gradient_by_autograd`.
    """

    def __init__(
        self,
        network: MStep,
        recipe: Recipe,
        X: FloatArray,
        seed: int,
        cpu_seconds: float | None = None,
    ) -> None:
        self.network, self.recipe = network, recipe
        self.averaged = deepcopy(network).requires_grad_(False) if recipe.averaging else network
        self.done, self.cpu_seconds = 0, cpu_seconds
        self._X, self._seed, self._spent = X, seed, 0.0
        self._last_order: tuple[int, IntArray] = -1, np.arange(0)
        pixels_seen = recipe.n_steps * recipe.batch_size * X.shape[-1]
        self._n_ahead = max(1, min(N_AHEAD, AHEAD // pixels_seen))
        self._ahead: tuple[int, tuple[Film, Tensor] | None] = -1, None
        self._parameters: list[Tensor] = list(network.parameters())
        self._averages: list[Tensor] = list(self.averaged.parameters())
        self._dtype = self._parameters[0].dtype
        self._optimizer = Adam(self._parameters)
        self.gradient: Gradient = self._by_hand() or self.gradient_by_autograd

    @property
    def progress(self) -> float:
        """Share of the budget that is used up; the training ends at 1."""
        return self._progress(self.done)

    def update(self) -> float:
        """Learn from one batch and return its loss, a mean over images [nat].

        An update without a finite loss changes nothing.
        """
        start = time.process_time()
        film, gamma = self.batch()
        value = self.gradient(film, gamma)
        if self.recipe.max_gradient:
            nn.utils.clip_grad_norm_(self._parameters, self.recipe.max_gradient)
        if math.isfinite(value):
            self._optimizer.step(self._rate())
        self.done += 1
        if self.averaged is not self.network:
            self._average()
        self._spent += time.process_time() - start
        return value

    @torch.no_grad()
    def loss(self, X: FloatArray) -> float:
        """Loss of other images, a mean over them [nat]; the same draws at every call."""
        generator = self._generator(2)
        return loss(self.averaged, self.recipe, *self._seen(X, self.recipe.noise, generator)).item()

    def state(self) -> dict[str, Any]:
        """All that the next update depends on."""
        return {
            "done": self.done,
            "spent": self._spent,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self._optimizer.state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, as if there had been no break."""
        self.done, self._spent = state["done"], state["spent"]
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self._optimizer.resume(state["optimizer"])

    def batch(self) -> tuple[Film, Tensor]:
        """What update number ``done`` sees, and its first responsibilities."""
        number, i = divmod(self.done, self._n_ahead)
        last, drawn = self._ahead
        if drawn is None or last != number:
            drawn = self._draw(number)
            self._ahead = number, drawn
        size = self.recipe.batch_size
        own = slice(i * size, (i + 1) * size)
        film, gamma = drawn
        return Film(film.noisy[:, own], film.clean[:, own]), gamma[:, own]

    def gradient_by_autograd(self, film: Film, gamma: Tensor) -> float:
        """Leave the gradient of the loss in the parameters, and return the loss [nat]."""
        self.network.zero_grad()
        halved = self.recipe.products == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=halved):
            value = loss(self.network, self.recipe, film, gamma)
        value.backward()
        return value.item()

    def _draw(self, number: int) -> tuple[Film, Tensor]:
        """What ``_n_ahead`` updates see, side by side."""
        n = self._n_ahead * self.recipe.batch_size
        images, generator = self._X[self._rows(number * n, n)], self._generator(0, number)
        return self._seen(images, self._noise(number * self._n_ahead), generator)

    def _seen(self, X: FloatArray, noise: float, generator: torch.Generator) -> tuple[Film, Tensor]:
        """What the network sees of images, and first responsibilities."""
        recipe, images = self.recipe, torch.as_tensor(X, dtype=self._dtype)
        if images.ndim == 2:
            seen = clean = still(images, recipe.n_steps)
        else:
            seen, clean = frames(images)
        noisy = corrupted(seen, recipe.noise_type, noise, generator)
        first = first_responsibilities(recipe.n_components, clean[0], generator)
        return Film(noisy, clean), first

    def _rows(self, first: int, size: int) -> IntArray:
        """So many images from there on, of passes in random order, one after the other."""
        n = len(self._X)
        passes = range(first // n, (first + size - 1) // n + 1)
        orders = np.concatenate([self._order(i) for i in passes])
        return orders[first - passes[0] * n :][:size]

    def _order(self, i: int) -> IntArray:
        """Of pass number i over the images; the last one asked for is remembered."""
        if self._last_order[0] != i:
            rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(1, i)))
            self._last_order = i, rng.permutation(len(self._X))
        return self._last_order[1]

    def _generator(self, *key: int) -> torch.Generator:
        """One for this purpose alone."""
        [seed] = np.random.SeedSequence(self._seed, spawn_key=key).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed) >> 1)

    def _noise(self, done: int) -> float:
        """Share of pixels that are hit; it goes straight to where it is to end."""
        start, end = self.recipe.noise, self.recipe.noise_end
        return start if end is None else start + (end - start) * self._progress(done)

    def _progress(self, done: int) -> float:
        """`progress` after so many updates."""
        seconds = self._spent / self.cpu_seconds if self.cpu_seconds else 0.0
        return min(1.0, max(seconds, done / self.recipe.max_updates))

    def _rate(self) -> float:
        """The learning rate."""
        if self.recipe.schedule == "constant":
            return self.recipe.lr
        rising = min(1.0, (self.progress + SMALLEST_RATE) / WARM_UP)
        return self.recipe.lr * rising * 0.5 * (1 + math.cos(math.pi * self.progress))

    def _by_hand(self) -> Gradient | None:
        """Loss and gradient without autograd, where there are such."""
        if self._X.ndim == 3 or not is_fusible(self.recipe):
            return None
        if not isinstance(self.network, RecurrentMStep):
            return None
        steps = FusedSteps(self.network, self.recipe, self.recipe.batch_size)
        return lambda film, gamma: steps(film.clean[0], film.noisy, gamma)

    @torch.no_grad()
    def _average(self) -> None:
        """Let the averages follow, faster while few updates are done."""
        share = max(1 - self.recipe.averaging, EARLY_AVERAGE / (EARLY_AVERAGE + self.done))
        torch._foreach_lerp_(self._averages, self._parameters, share)
