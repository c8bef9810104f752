"""RepBN, a batch normalization with a scaled shortcut, and the mixture that moves from LayerNorm to it during training.

Paper: SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization,
arXiv 2405.11582, section 3.1 (equations 2 to 4). Parameter and buffer names are the authors'.
On purpose otherwise than there: what gradient checkpointing computes again moves neither the schedule nor the statistics, and uses
the mixture of the first time; a callback can set the schedule from the optimizer's step (`drive`); the norm that is not used gets
gradients of zero, so that DistributedDataParallel sees every parameter; frozen norms (adapters do not save statistics) are in training
what they are in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import initialization as init

from .fusion import batchnorm_affine, fuse_affine_after, fuse_affine_before


class RepBatchNorm(nn.Module):
    """RepBN(x) = BatchNorm(x) + alpha * x over the last axis (equation 2).

    Args:
        channels: C, the size of the last axis.
        eps: of the batch normalization.
        zero_init: start as the map to zero (the language models), not as BatchNorm(x) + x.
    """

    def __init__(self, channels: int, eps: float = 1e-5, zero_init: bool = False):
        super().__init__()
        self.zero_init = zero_init
        self.alpha = nn.Parameter(torch.empty(1))
        self.bn = nn.BatchNorm1d(channels, eps=eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        value = 0.0 if self.zero_init else 1.0
        init.constant_(self.alpha, value)
        init.constant_(self.bn.weight, value)
        init.zeros_(self.bn.bias)

    @property
    def learning(self) -> bool:
        """In training mode and not frozen: the statistics are those of the batch."""
        return self.training and self.alpha.requires_grad

    def affine(self, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b), each (C,): in eval mode RepBN(x) is a * x + b."""
        scale, shift = batchnorm_affine(self.bn, dtype)
        return scale + self.alpha.to(dtype), shift

    def forward(self, hidden_states: torch.Tensor, pad_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            hidden_states: (..., C).
            pad_mask: (...), nonzero where there is a token. In training the statistics leave the other places out, which become
                x + alpha * x; in eval mode it changes nothing.

        Raises:
            ValueError: a mask of another shape; in training, fewer than two tokens.
        """
        if not self.training and not torch.is_grad_enabled() and not self.bn.weight.is_meta:  # meta: offloaded
            scale, shift = self.affine(torch.promote_types(hidden_states.dtype, torch.float32))
            return torch.addcmul(shift.to(hidden_states.dtype), hidden_states, scale.to(hidden_states.dtype))
        if pad_mask is None or not self.learning:
            normalized = self._normalize(hidden_states.flatten(0, -2)).view_as(hidden_states)
        else:
            if pad_mask.shape != hidden_states.shape[:-1]:
                raise ValueError(
                    f"pad_mask has one entry per token, {tuple(hidden_states.shape[:-1])}, got {tuple(pad_mask.shape)}"
                )
            kept = pad_mask.bool()
            normalized = hidden_states.clone()
            normalized[kept] = self._normalize(hidden_states[kept])
        return normalized + self.alpha * hidden_states

    def _normalize(self, tokens: torch.Tensor) -> torch.Tensor:
        """BatchNorm of (tokens, C); what is computed again in a backward pass leaves the statistics alone."""
        bn = self.bn
        # SyncBatchNorm cannot do without its own forward, which asks the other processes
        again = self.learning and in_backward() and isinstance(bn, nn.BatchNorm1d)
        if again or self.learning != self.training:
            mean, variance = bn.running_mean.clone(), bn.running_var.clone()
            return nn.functional.batch_norm(tokens, mean, variance, bn.weight, bn.bias, self.learning, eps=bn.eps)
        return bn(tokens)


class LinearNorm(nn.Module):
    """PRepBN: ratio * norm1(x) + (1 - ratio) * norm2(x) in training, norm2(x) in eval mode (equations 3 and 4).

    The ratio is r0 * iter / total_step. `iter` starts at `step` and falls by one with each forward pass in training, after `warm`
    passes that use norm1 only. Both counters are buffers: a checkpoint knows how far it got.

    Args:
        norm1: what training starts with, a LayerNorm or RMSNorm.
        norm2: what is left in the end.
        warm, step: how many counts for each stage.
        r0: the ratio that the second stage starts from.
        update_every: count one in so many passes, the accumulation steps (the language models: 16).
    """

    def __init__(
        self,
        norm1: nn.Module,
        norm2: RepBatchNorm,
        warm: int = 0,
        step: int = 300_000,
        r0: float = 1.0,
        update_every: int = 1,
    ):
        super().__init__()
        if warm < 0 or step < 1 or update_every < 1:
            raise ValueError(
                f"LinearNorm counts `warm` >= 0, `step` >= 1 and `update_every` >= 1, got {warm}, {step} and {update_every}"
            )
        self.start, self.r0, self.update_every = (warm, step), r0, update_every
        for name in ("warm", "iter", "total_step", *(("num_step",) if update_every > 1 else ())):
            self.register_buffer(name, torch.empty((), dtype=torch.int64))
        self.norm1, self.norm2 = norm1, norm2
        self.ratio: float | None = None  # of the last forward pass in training; None while only norm1 is used
        self.driven = False
        self.reset_counters()

    def reset_counters(self) -> None:
        warm, step = self.start
        for name, value in (("warm", warm), ("iter", step), ("total_step", step), ("num_step", 0)):
            if name in self._buffers:
                init.constant_(self._buffers[name], value)

    def fuse(self) -> RepBatchNorm:
        """What is left for inference."""
        return self.norm2

    def drive(self, step: int, warm: int, steps: int) -> None:
        """Sets the counters to where they stand before optimizer step `step` (from 0); forward passes count no longer.

        Args:
            warm, steps: the length of the first and the second stage, in optimizer steps.
        """
        if warm < 0 or steps < 1 or step < 0:
            raise ValueError(
                f"The schedule has `step` and `warm` >= 0 and `steps` >= 1, got {step}, {warm} and {steps}"
            )
        self.driven = True
        remaining = max(0, steps - max(0, step - warm))
        for name, value in (("warm", max(0, warm - step)), ("iter", remaining), ("total_step", steps)):
            self._buffers[name].fill_(value)
        self.ratio = None if step < warm else self.r0 * remaining / steps

    def forward(self, hidden_states: torch.Tensor, pad_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(..., C) -> (..., C); `pad_mask` goes to `norm2`."""
        if not (self.training and self.norm2.learning):
            output = self.norm2(hidden_states, pad_mask)
            return output + zero_of(self.norm1) if torch.is_grad_enabled() else output
        if not (self.driven or in_backward()):
            self.ratio = self._count()
        if self.ratio is None:
            return self.norm1(hidden_states) + zero_of(self.norm2)
        return self.ratio * self.norm1(hidden_states) + (1 - self.ratio) * self.norm2(hidden_states, pad_mask)

    @torch.no_grad()
    def _count(self) -> float | None:
        """The ratio of this pass; moves the counters."""
        warm, remaining = int(self.warm), int(self.iter)
        counts = True
        if self.update_every > 1:
            counts = int(self.num_step) == 0
            self.num_step.add_(1).remainder_(self.update_every)
        if warm > 0:
            self.warm.sub_(int(counts))
            return None
        self.iter.sub_(int(counts and remaining > 0))
        return self.r0 * remaining / int(self.total_step)


Norm = RepBatchNorm | LinearNorm


def in_backward() -> bool:
    """Whether autograd runs: what is computed now is computed again, for gradient checkpointing."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def zero_of(unused: nn.Module) -> torch.Tensor | float:
    """Zero, with a gradient of zero for each parameter of a module that takes no part in this forward pass."""
    if not torch.is_grad_enabled():
        return 0.0
    return 0.0 * sum(p.sum() for p in unused.parameters() if p.requires_grad and not p.is_meta)


def affine(norm: Norm, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """(a, b), each (C,): in eval mode `norm(x)` is a * x + b. float64, because alpha and gamma / sigma may nearly cancel."""
    return (norm.norm2 if isinstance(norm, LinearNorm) else norm).affine(dtype)


def fold_into_linear(norm: Norm, linear: nn.Linear) -> nn.Linear:
    """One linear layer, with bias, equal to `linear(norm(x))` in eval mode: W' = W diag(a), c' = c + W b."""
    return fuse_affine_before(*affine(norm), linear)


def fold_into_conv(conv: nn.Conv2d, norm: Norm) -> nn.Conv2d:
    """One convolution, with bias, equal to `norm` over the channels of `conv(x)` in eval mode: W' = a W, c' = a c + b."""
    return fuse_affine_after(conv, *affine(norm))


def fold_into_followers(parent: nn.Module, norm: str, linears: Iterable[str]) -> None:
    """Folds the submodule `norm` of `parent` into every linear layer that reads it; all are named from `parent`."""
    for name in linears:
        parent.set_submodule(name, fold_into_linear(parent.get_submodule(norm), parent.get_submodule(name)))
    parent.set_submodule(norm, nn.Identity())
