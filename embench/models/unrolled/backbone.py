"""Features before the EM layer, and the guard against those that would collapse."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from embench.models.unrolled.em_map import Mixtures
from embench.models.unrolled.layer import Clustering, EMLayer, generator_of, linear_layer


@runtime_checkable
class Invertible(Protocol):
    """A backbone whose features are X in other coordinates, so that densities can be compared."""

    def features_and_log_det(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, N, D] of X [B, N, D], and log|det d features / d x| of each sample, [B, N]
        [nat]."""
        ...


class EMNet(nn.Module):
    """A backbone that makes features of the samples, and an `EMLayer` that clusters them.

    The log-likelihood is that of X wherever X has one: of the features plus the sum over the
    samples of log|det d features / d x|, if the backbone is `Invertible`. One without trainable
    parameters is taken as part of the data, and the log-likelihood is that of its features.

    A trainable backbone of any other kind is refused. Under the likelihood of its own features it
    collapses: features shrink into a point or onto a line, where the density is infinite and little
    is left of the data.

    Args:
        layer: With as many features as the backbone makes.
        backbone: None, a module without trainable parameters, or an `Invertible` one such as
            `AffineCoupling`.

    Raises:
        ValueError: The backbone is none of these.

    Source:
        Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using Real NVP, eq. 2.

    Example:
        >>> layer = EMLayer(2, n_components=3, random_state=0)
        >>> net = EMNet(layer, AffineCoupling(2, random_state=0))
        >>> X = torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0))
        >>> bool((net(X).log_likelihood - layer(X).log_likelihood).abs() < 1e-2)  # as yet
        True
    """

    def __init__(self, layer: EMLayer, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.backbone = layer, backbone
        _refuse_collapse(backbone)

    def forward(
        self, X: Tensor, start: Mixtures | None = None, mask: Tensor | None = None
    ) -> Clustering:
        """As of the layer; the parameters, and a start, are those of the features."""
        if self.backbone is None:
            return self.layer(X, start, mask)
        _refuse_collapse(self.backbone)  # again: it may have been frozen then
        X = X if mask is None else X.where(mask[..., None], 0)
        if not isinstance(self.backbone, Invertible):
            return self.layer(self.backbone(X), start, mask)
        features, log_det = self.backbone.features_and_log_det(X)
        found = self.layer(features, start, mask)
        log_det = log_det if mask is None else log_det.where(mask, 0)
        return found._replace(log_likelihood=found.log_likelihood + log_det.sum(-1))


class AffineCoupling(nn.Module):
    """An invertible backbone: half of the features scale and shift the other half, in turns.

    y_a = x_a, y_b = x_b exp(s(x_a)) + t(x_a), where s and t are a small network's; in every second
    layer the halves change places. log|det| is the sum of s. It begins as the identity.

    Args:
        n_features: At least 2.
        n_layers: Number of turns, >= 1.
        hidden: Width of the networks.
        random_state: Seed, or a generator on the CPU.
        dtype: As of any torch module.

    Raises:
        ValueError: There is one feature only, which has no half.

    Source:
        Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using Real NVP, eq. 4 to 7.

    Example:
        >>> X = torch.tensor([[[1.0, 2.0]]])
        >>> AffineCoupling(2, random_state=0).features_and_log_det(X)[0].tolist()
        [[[1.0, 2.0]]]
    """

    def __init__(
        self,
        n_features: int,
        n_layers: int = 2,
        hidden: int = 32,
        *,
        random_state: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if n_features < 2 or n_layers < 1:
            raise ValueError(
                f"expected n_features >= 2 and n_layers >= 1, got {n_features} and {n_layers}"
            )
        generator = generator_of(random_state)
        half = n_features // 2
        self.networks = nn.ModuleList()
        for i in range(n_layers):
            n_seen = half if i % 2 == 0 else n_features - half
            n_moved = n_features - n_seen
            self.networks.append(
                nn.Sequential(
                    linear_layer(n_seen, hidden, generator),
                    nn.SiLU(),
                    linear_layer(hidden, 2 * n_moved, None),
                )
            )
        self.networks.to(dtype or torch.get_default_dtype())

    def forward(self, X: Tensor) -> Tensor:
        """Features [B, N, D] of X [B, N, D]."""
        return self.features_and_log_det(X)[0]

    def features_and_log_det(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """As `Invertible` says."""
        half = X.shape[-1] // 2
        first, second = X[..., :half], X[..., half:]
        log_det = X.new_zeros(X.shape[:-1])
        for network in self.networks:
            log_scale, shift = network(first).chunk(2, dim=-1)
            log_scale = log_scale.tanh()
            first, second = second * log_scale.exp() + shift, first
            log_det = log_det + log_scale.sum(-1)
        parts = [first, second] if len(self.networks) % 2 == 0 else [second, first]
        return torch.cat(parts, dim=-1), log_det


def _refuse_collapse(backbone: nn.Module | None) -> None:
    if backbone is None or isinstance(backbone, Invertible):
        return
    n_trainable = sum(part.numel() for part in backbone.parameters() if part.requires_grad)
    if n_trainable:
        raise ValueError(
            f"the backbone {type(backbone).__name__} has {n_trainable} trainable parameters: under "
            "the likelihood of its own features it would shrink them into a point. Freeze it with "
            "requires_grad_(False), use an invertible one with features_and_log_det(X) such as "
            "AffineCoupling, or train it by a supervised loss of EMLayer()(backbone(X))"
        )
