"""Laws of a pixel given the prediction of a group: E-step, loss and likelihood."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from embench.models.neural.recipes import Pixels

SMALLEST = 1e-6
"""Added to every probability in the E-step, so that a pixel that no group expects belongs to all of
them alike. Source: Greff, van Steenkiste and Schmidhuber (2017), their program."""

STDDEV = 0.25
"""Of Gaussian pixels, in units of brightness; fixed, as in the same source."""


class PixelLaw(ABC):
    """p(x|psi) of a pixel x in a group that predicts psi, read off a network's ``outputs``.

    Shapes: ``outputs``, ``psi`` and ``gamma`` [K, B, D], ``images`` [B, D], for K groups, B images
    and D pixels.
    """

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """psi, the expected pixel, [K, B, D]."""

    @abstractmethod
    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        """log p(x|psi) [nat], [K, B, D]."""

    @abstractmethod
    def cross_entropy(self, images: Tensor, outputs: Tensor) -> Tensor:
        """-log p(x|psi) but for a constant [nat], [K, B, D]."""

    @abstractmethod
    def divergence(self, outputs: Tensor, prior: float) -> Tensor:
        """KL divergence of p(x|psi) from that of the ``prior`` psi [nat], [K, B, D]."""

    @abstractmethod
    def e_step(self, images: Tensor, outputs: Tensor) -> Tensor:
        """gamma, the responsibilities under uniform mixing, [K, B, D], which sum to 1 over K."""

    def loss(
        self, images: Tensor, outputs: Tensor, gamma: Tensor, kl_weight: float, prior: float
    ) -> Tensor:
        """Loss of one step, a mean over images [nat].

        sum over groups and pixels of gamma * cross-entropy + kl_weight * (1 - gamma) * KL: groups
        explain the pixels that are theirs, and say nothing of the others.

        Source:
            Greff, van Steenkiste and Schmidhuber (2017), Neural expectation maximization, eq. 7.
        """
        own = gamma * self.cross_entropy(images, outputs)
        others = (1 - gamma) * self.divergence(outputs, prior)
        return (own + kl_weight * others).sum() / images.shape[0]

    def log_likelihood(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Of each image under its mixture of groups, with uniform mixing, [B] [nat]."""
        mixed = self.log_prob(images, outputs).logsumexp(0) - math.log(len(outputs))
        return mixed.sum(-1)


class BernoulliPixels(PixelLaw):
    """Pixels that are 0 or 1; the network's outputs are logits of psi."""

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        return -self.cross_entropy(images, outputs)

    def cross_entropy(self, images: Tensor, outputs: Tensor) -> Tensor:
        return softplus(outputs) - images * outputs

    def divergence(self, outputs: Tensor, prior: float) -> Tensor:
        # sum_x prior(x) log prior(x) is 0 for a prior of 0, where the logarithm is not.
        entropy = sum(-p * math.log(p) for p in (prior, 1 - prior) if p)
        return softplus(outputs) - prior * outputs - entropy

    def e_step(self, images: Tensor, outputs: Tensor) -> Tensor:
        psi = outputs.sigmoid()
        probabilities = images * psi + (1 - images) * (1 - psi) + SMALLEST
        return probabilities / probabilities.sum(0)


class GaussianPixels(PixelLaw):
    """Pixels of any brightness, with a standard deviation of `STDDEV`; the outputs are psi."""

    _constant: ClassVar[float] = math.log(STDDEV) + 0.5 * math.log(2 * math.pi)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs

    def log_prob(self, images: Tensor, outputs: Tensor) -> Tensor:
        return -self.cross_entropy(images, outputs) - self._constant

    def cross_entropy(self, images: Tensor, outputs: Tensor) -> Tensor:
        return 0.5 * ((images - outputs) / STDDEV).square()

    def divergence(self, outputs: Tensor, prior: float) -> Tensor:
        return 0.5 * ((outputs - prior) / STDDEV).square()

    def e_step(self, images: Tensor, outputs: Tensor) -> Tensor:
        probabilities = self.log_prob(images, outputs).exp() + SMALLEST
        return probabilities / probabilities.sum(0)


LAWS: dict[Pixels, PixelLaw] = {"bernoulli": BernoulliPixels(), "gaussian": GaussianPixels()}
"""The laws by name."""
