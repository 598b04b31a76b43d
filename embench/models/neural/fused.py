"""Loss and gradient of RNN-EM on binary stills, by hand: most of the time goes to matrix products.

Where the prior is 0 and the KL term has weight 1, the loss of a step is softplus(l) - gamma * x * l
for a logit l: no logarithm of psi, nothing to clip. Three things are faster than by autograd: every
product has its place in memory; the E-step and its gradient are few passes over data that are still
in the cache; and the gradient of a weight is one product over all steps, not one for each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from embench.models.neural.networks import RecurrentMStep, SigmoidCell
from embench.models.neural.pixels import SMALLEST
from embench.models.neural.recipes import Recipe


def is_fusible(recipe: Recipe) -> bool:
    """Whether it is what `FusedSteps` computes, for images that do not move."""
    asked = (recipe.pixels, recipe.cell, recipe.encoder, recipe.decoder)
    plain = asked == ("bernoulli", "rnn", "none", "none")
    return plain and (recipe.kl_weight, recipe.prior) == (1.0, 0.0)


class FusedSteps:
    """Loss and gradient for batches of one size; all memory is taken once.

    Args:
        network: Of the sigmoid cell, with neither encoder nor decoder.
        recipe: One that `is_fusible`.
        n_images: Of a batch.

    Notes:
        Memory: 5 n_steps n_components n_images n_pixels numbers.
        6 n_steps n_components (2 n_pixels hidden + hidden^2) floating-point operations an image in
        matrix products; `python benchmarks/neural.py` says which share of the time they take.
    """

    def __init__(self, network: RecurrentMStep, recipe: Recipe, n_images: int) -> None:
        cell, output = network.cell, network.output
        halved = recipe.products == "bfloat16"
        self.multiply: Callable[..., None] = _halved if halved else _exact
        self.cast: Callable[[Tensor], Tensor] = Tensor.bfloat16 if halved else _uncast
        if not (isinstance(cell, SigmoidCell) and isinstance(output, nn.Linear)):
            raise TypeError("expected a network with a sigmoid cell and a linear output")
        self.cell, self.output, self.weights = cell, output, recipe.step_weights
        self.through_gamma = recipe.gamma_gradient
        weight = output.weight
        self.smallest = torch.finfo(weight.dtype).eps / 2
        T, K, B = recipe.n_steps, recipe.n_components, n_images
        D, H = weight.shape
        self.shape = T, K, B, D, H
        self.errors, self.logits, self.psi = (weight.new_empty(T, K, B, D) for _ in range(3))
        self.gamma, self.d_logits = (weight.new_empty(T, K, B, D) for _ in range(2))
        self.slope = weight.new_empty(T, B, D)
        self.hidden, self.d_inputs = (weight.new_empty(T, K * B, H) for _ in range(2))
        self.d_hidden = weight.new_empty(K * B, H)
        self.d_errors, self.d_gamma = (weight.new_empty(K, B, D) for _ in range(2))
        self.total = weight.new_empty(B, D)

    @torch.no_grad()
    def __call__(self, images: Tensor, noisy: Tensor, gamma: Tensor) -> float:
        """The loss [nat], a mean over images; leaves its gradient in the network's parameters.

        Args:
            images: Of 0 and 1, [B, D].
            noisy: What the steps see of them, [n_steps, B, D].
            gamma: First responsibilities, [K, B, D].
        """
        loss = self._forward(images, noisy, gamma)
        self._backward(images, noisy)
        return loss

    def _forward(self, images: Tensor, noisy: Tensor, gamma: Tensor) -> float:
        """The loss; ``logits`` become images * logits on the way, which is all that is needed."""
        T, K, B, D, _ = self.shape
        cell, output = self.cell, self.output
        weights = (cell.input.weight, cell.recurrent.weight, output.weight)
        W_in, W_hidden, W_out = (self.cast(weight).T for weight in weights)
        sign, absent = 2 * images - 1, 1 - images + SMALLEST
        loss = 0.0
        for t in range(T):
            errors, hidden, logits = self.errors[t], self.hidden[t], self.logits[t]
            if t == 0:
                torch.mul(noisy[0], gamma, out=errors)
            else:
                torch.sub(noisy[t], self.psi[t - 1], out=errors).mul_(self.gamma[t - 1])
            self.multiply(errors.view(K * B, D), W_in, hidden, cell.input.bias)
            if t > 0:
                self.multiply(self.hidden[t - 1], W_hidden, hidden, hidden)
            hidden.sigmoid_()
            self.multiply(hidden, W_out, logits.view(K * B, D), output.bias)
            psi = torch.sigmoid(logits, out=self.psi[t])
            probabilities = torch.addcmul(absent, sign, psi, out=self.gamma[t])
            torch.sum(probabilities, 0, out=self.total).reciprocal_()
            probabilities.mul_(self.total)  # now gamma
            torch.mul(sign, self.total, out=self.slope[t])
            if self.weights[t]:
                # softplus(l) = -log(1 - psi), quicker, and as right as the digits of psi.
                absences = torch.sub(1, psi, out=self.d_errors).clamp_min_(self.smallest)
                everywhere = -_sum_of_logs(absences.view(-1))
                logits.mul_(images)
                own = torch.dot(logits.view(-1), self.gamma[t].view(-1))
                loss += self.weights[t] * float(everywhere - own)
        return loss / B

    def _backward(self, images: Tensor, noisy: Tensor) -> None:
        """Back through the steps, then one product for each weight."""
        T, K, B, D, H = self.shape
        cell, output = self.cell, self.output
        weights = (cell.input.weight, cell.recurrent.weight, output.weight)
        W_in, W_hidden, W_out = map(self.cast, weights)
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        for t in reversed(range(T)):
            psi, gamma, d_logits = self.psi[t], self.gamma[t], self.d_logits[t]
            weight, is_last = self.weights[t] / B, t == T - 1
            if not is_last:
                d_errors = self.d_errors
                self.multiply(self.d_inputs[t + 1], W_in, d_errors.view(K * B, D))
            sigmoid_backward(self._d_psi(noisy, t), psi, grad_input=d_logits)
            if weight:
                d_logits.add_(psi, alpha=weight).addcmul_(gamma, images, value=-weight)
            self.multiply(d_logits.view(K * B, D), W_out, self.d_hidden)
            if not is_last:
                self.multiply(self.d_inputs[t + 1], W_hidden, self.d_hidden, self.d_hidden)
            sigmoid_backward(self.d_hidden, self.hidden[t], grad_input=self.d_inputs[t])
        n = T * K * B
        d_inputs, d_logits = self.d_inputs.view(n, H), self.d_logits.view(n, D)
        before, after = self.hidden[:-1].reshape(-1, H), self.d_inputs[1:].reshape(-1, H)
        self.multiply(d_inputs.T, self.errors.view(n, D), _grad(cell.input.weight))
        torch.sum(d_inputs, 0, out=_grad(cell.input.bias))
        self.multiply(after.T, before, _grad(cell.recurrent.weight))
        self.multiply(d_logits.T, self.hidden.view(n, H), _grad(output.weight))
        torch.sum(d_logits, 0, out=_grad(output.bias))

    def _d_psi(self, noisy: Tensor, t: int) -> Tensor:
        """Gradient in psi by what comes of it: gamma, and the errors of the next step, if any.

        Of gamma = p / sum(p) it is (d_gamma - sum(gamma * d_gamma)) / sum(p) in p = psi or 1 - psi.
        """
        psi, gamma, d_errors, d_gamma = self.psi[t], self.gamma[t], self.d_errors, self.d_gamma
        weight, is_last = self.weights[t] / self.shape[2], t == len(self.psi) - 1
        if not self.through_gamma:
            return d_gamma.zero_() if is_last else torch.mul(gamma, d_errors, out=d_gamma).neg_()
        if is_last:
            torch.mul(self.logits[t], -weight, out=d_gamma)
        else:
            torch.sub(noisy[t + 1], psi, out=d_gamma).mul_(d_errors)
            if weight:
                d_gamma.sub_(self.logits[t], alpha=weight)
        shared = torch.mul(d_gamma, gamma, out=self.d_logits[t])
        torch.sum(shared, 0, out=self.total)
        d_gamma.sub_(self.total).mul_(self.slope[t])
        return d_gamma if is_last else d_gamma.addcmul_(gamma, d_errors, value=-1)


def _sum_of_logs(values: Tensor) -> Tensor:
    """Of values [n] in [eps / 2, 1], which are lost: logarithms are slow, so one of every four."""
    n = len(values) // 4
    few = values[:n]
    for i in range(1, 4):
        few.mul_(values[i * n : (i + 1) * n])  # no less than eps^4 / 16, which is no underflow
    return few.log_().sum() + values[4 * n :].log_().sum()


def has_bfloat16(dtype: str) -> bool:
    """Whether this processor has products of bfloat16 with sums of float32, for such numbers."""
    return dtype == "float32" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _exact(left: Tensor, right: Tensor, out: Tensor, added: Tensor | None = None) -> None:
    """out = left @ right, plus what is added."""
    if added is None:
        torch.mm(left, right, out=out)
    else:
        torch.addmm(added, left, right, out=out)


def _halved(left: Tensor, right: Tensor, out: Tensor, added: Tensor | None = None) -> None:
    """The same by factors of eight binary digits; only products know of them."""
    product = left.bfloat16() @ right.bfloat16()
    if added is None:
        out.copy_(product)
    else:
        torch.add(added, product, out=out)


def _uncast(weight: Tensor) -> Tensor:
    return weight


def _grad(parameter: Tensor) -> Tensor:
    """Where its gradient goes: memory that is there already, after the first time."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
