"""Product quantization under the L1 distance: every subspace of a vector is coded by its nearest codeword (SPT, section 4.1)."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**17  # distances that the loss forms at a time


def product_codes(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Indices of the nearest codewords, the first of equals.

    Args:
        z: (..., subspaces * width).
        codebooks: (subspaces, codewords, width).

    Returns:
        (..., subspaces), int64. No gradient.

    Raises:
        ValueError: the last axis of z is not that of the codebooks.
    """
    with torch.no_grad():
        return _distances(_subspaces(z, codebooks), codebooks).argmin(-1).T.view(*z.shape[:-1], codebooks.shape[0])


def quantize(codes: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """The codewords behind codes (..., subspaces), beside each other: (..., subspaces * width)"""
    subspaces = torch.arange(codebooks.shape[0], device=codes.device)
    return codebooks[subspaces, codes].flatten(-2)


def quantizer_loss(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """The loss that moves codewords to vectors: the soft codeword (weights inverse to distance) to the hard one, and that to z.

    Gradients reach z and the codebooks everywhere. Arguments as in `product_codes`; a scalar. Distances are formed for some vectors at a
    time, and again in the backward pass.
    """
    parts = _subspaces(z, codebooks).to(codebooks.dtype)
    step = max(1, CHUNK_ELEMENTS // codebooks[..., 0].numel())
    pieces = [
        checkpoint(_squared_errors, piece, codebooks, use_reentrant=False, preserve_rng_state=False)
        for piece in parts.split(step, 1)
    ]
    return torch.stack(pieces).sum() / parts.numel()


def _squared_errors(parts: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    distances = _distances(parts, codebooks)
    soft = (-distances.clamp(min=1e-5).log()).softmax(-1) @ codebooks
    hard = codebooks.take_along_dim(distances.argmin(-1, keepdim=True), 1)
    return (soft - hard).square().sum() + (parts - hard).square().sum()


def _subspaces(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """(..., subspaces * width) -> (subspaces, vectors, width)"""
    if codebooks.ndim != 3 or z.shape[-1] != codebooks.shape[0] * codebooks.shape[2]:
        raise ValueError(
            f"vectors of {z.shape[-1]} channels do not fit codebooks {tuple(codebooks.shape)} of (subspaces, codewords, width)"
        )
    return z.reshape(-1, codebooks.shape[0], codebooks.shape[2]).transpose(0, 1)


def _distances(parts: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """(subspaces, vectors, codewords)"""
    wide = torch.promote_types(parts.dtype, torch.float32)  # there is no kernel for half precision
    return torch.cdist(parts.to(wide).contiguous(), codebooks.to(wide), p=1.0).to(parts.dtype)
