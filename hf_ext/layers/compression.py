"""The arithmetic that compression methods share: masks, fake quantization, scale migration, merging of tokens.

Definitions as collected by "A Survey of Techniques for Optimizing Transformer Inference" (arXiv 2307.07982); each names its own source.
Masks and rounding are torch's (`torch.nn.utils.prune`, `torch.fake_quantize_*`) where torch has them. All of it is differentiable, rounding
with the straight-through gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.utils import prune

FLOOR = 1e-5  # of the maxima that `smooth_scale` divides by


def magnitude_mask(weight: torch.Tensor, amount: float) -> torch.Tensor:
    """1 where a weight stays, 0 at the round(amount * numel) of least magnitude; of the shape of `weight`.

    Raises:
        ValueError: an amount outside 0 to 1.
    """
    _check_amount(amount)
    return prune.L1Unstructured(float(amount)).compute_mask(weight, torch.ones_like(weight))


def row_mask(weight: torch.Tensor, amount: float) -> torch.Tensor:
    """1 in the rows that stay, 0 in the round(amount * rows) of least Euclidean norm; `weight` is (rows, ...), of two dimensions or more.

    Raises:
        ValueError: an amount outside 0 to 1, or fewer than two dimensions.
    """
    _check_amount(amount)
    if weight.ndim < 2:
        raise ValueError(f"row_mask takes a weight of two dimensions or more, got {tuple(weight.shape)}")
    return prune.LnStructured(float(amount), n=2, dim=0).compute_mask(weight, torch.ones_like(weight))


def mask_2_4(weight: torch.Tensor) -> torch.Tensor:
    """1 at the two of largest magnitude in every four consecutive inputs: the pattern of sparse tensor cores.

    Args:
        weight: (..., inputs), `inputs` a multiple of 4.
    """
    if weight.shape[-1] % 4:
        raise ValueError(f"the 2:4 pattern takes a multiple of 4 inputs, got a weight {tuple(weight.shape)}")
    groups = weight.abs().unflatten(-1, (-1, 4))
    return torch.zeros_like(groups).scatter_(-1, groups.topk(2).indices, 1).flatten(-2)


def fake_quantize_activation(x: torch.Tensor) -> torch.Tensor:
    """`x` rounded to 256 levels between its least and largest value, 0 being one of them (uint8, asymmetric, one scale for all)."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).tiny).float()
    zero_point = (-low / scale).round().clamp(0, 255).int()
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)


def fake_quantize_weight(weight: torch.Tensor) -> torch.Tensor:
    """`weight` (rows, ...) rounded to -127 ... 127 times a row's largest magnitude / 127 (int8, symmetric, a scale for each output)."""
    largest = weight.detach().abs().flatten(1).amax(1)
    scale = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny).float()
    zero_points = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, -127, 127)


def smooth_scale(inputs: torch.Tensor, weight: torch.Tensor, alpha: float = 0.5) -> torch.Tensor:
    """SmoothQuant's scale of each input channel: max|X_j|^alpha / max|W_j|^(1 - alpha)   (arXiv 2211.10438, eq. 4)

    `(inputs / scale) @ (weight * scale).T` is the product unchanged, with the outliers of `inputs` moved into `weight`.

    Args:
        inputs: (..., channels), what enters the linear layer.
        weight: (outputs, channels).
    """
    if inputs.shape[-1] != weight.shape[-1] or not 0 <= alpha <= 1:
        raise ValueError(
            f"smooth_scale takes inputs (..., channels), a weight (outputs, channels) and alpha from 0 to 1; got {tuple(inputs.shape)}, "
            f"{tuple(weight.shape)} and {alpha}"
        )
    largest_input = inputs.detach().abs().flatten(0, -2).amax(0).clamp_min(FLOOR)
    largest_weight = weight.detach().abs().amax(0).clamp_min(FLOOR)
    return largest_input**alpha / largest_weight ** (1 - alpha)


def merge_tokens(
    tokens: torch.Tensor, merge: int, size: torch.Tensor | None = None, metric: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges the `merge` most similar pairs of neighbours in two halves of the tokens, the even and the odd (ToMe, arXiv 2210.09461).

    Args:
        tokens: (batch, tokens, channels). Token 0 is never merged away: it is the class token.
        merge: how many tokens go; at most the even ones without token 0.
        size: (batch, tokens, 1), how many tokens each stands for already; ones when None.
        metric: (batch, tokens, channels), what is compared by cosine, such as keys; the tokens themselves when None.

    Returns:
        The tokens (batch, tokens - merge, channels), means weighted by size: the even ones that stay, in their order, then the odd ones.
        And their sizes (batch, tokens - merge, 1).

    Raises:
        ValueError: another rank, or more to merge than there can be.
    """
    if tokens.ndim != 3:
        raise ValueError(f"tokens are (batch, tokens, channels), got {tuple(tokens.shape)}")
    even, odd = (tokens.shape[1] + 1) // 2, tokens.shape[1] // 2
    most = even - 1 if odd else 0
    if not 0 <= merge <= most:
        raise ValueError(f"of {tokens.shape[1]} tokens at most {most} can be merged, not {merge}")
    size = tokens.new_ones(*tokens.shape[:2], 1) if size is None else size
    if not merge:
        return tokens, size
    directions = F.normalize(tokens if metric is None else metric, dim=-1)
    scores = directions[:, ::2] @ directions[:, 1::2].mT
    scores = torch.cat((torch.full_like(scores[:, :1], -torch.inf), scores[:, 1:]), 1)
    best, partner = scores.max(-1)
    order = best.argsort(-1, descending=True).unsqueeze(-1)
    merged, stays = order[:, :merge], order[:, merge:].sort(1).values
    partner = partner.unsqueeze(-1).take_along_dim(merged, 1)

    def gathered(x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, channels) -> the same for the tokens that are left, summed"""
        first, second = x[:, ::2], x[:, 1::2]
        joined = second.scatter_add(1, partner.expand(-1, -1, x.shape[-1]), first.take_along_dim(merged, 1))
        return torch.cat((first.take_along_dim(stays, 1), joined), 1)

    sizes = gathered(size)
    return gathered(tokens * size) / sizes, sizes


def _check_amount(amount: float) -> None:
    if not 0 <= amount <= 1:
        raise ValueError(f"amount is a share from 0 to 1, got {amount}")
