"""Instance-aware batch norm as a module, and models that have it instead of their batch norms (NOTE, arXiv 2208.05117)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_ext.ops.iabn import instance_aware_normalization


class InstanceAwareBatchNorm(nn.Module):
    """Around a batch norm of any number of spatial axes, which it holds as `_bn`.

    In eval mode it starts from the batch norm's running statistics, in training mode, or where there are none, from the batch's; then
    what an instance's own statistics exceed those by, beyond chance, is taken into account.

    Args:
        norm: the batch norm.
        k: how many standard errors are taken for chance; large values leave a plain batch norm.
        skip_threshold: with so many positions or fewer it is one anyway.
    """

    def __init__(self, norm: _BatchNorm, k: float = 4.0, skip_threshold: int = 1):
        super().__init__()
        if not k >= 0:
            raise ValueError(f"k={k} must be 0 or more")
        if skip_threshold < 1:
            raise ValueError(f"skip_threshold={skip_threshold} must be 1 or more: one position has no variance")
        self._bn, self.k, self.skip_threshold = norm, k, skip_threshold

    def extra_repr(self) -> str:
        return f"k={self.k}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, ...) -> the same shape"""
        mean, var = self._statistics(x)
        norm = self._bn
        return instance_aware_normalization(x, mean, var, norm.weight, norm.bias, self.k, norm.eps, self.skip_threshold)

    def _statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        norm = self._bn
        tracked = norm.track_running_stats and norm.running_mean is not None
        if tracked and not self.training:
            return norm.running_mean, norm.running_var
        if tracked:
            with torch.no_grad():
                norm(x)  # moves the running statistics
        var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=1)
        return mean, var


def convert_batch_norms(model: nn.Module, k: float = 4.0, skip_threshold: int = 1) -> list[str]:
    """Wraps every batch norm of `model` in place; returns their names. Those that are wrapped already stay as they are."""
    wrapped = {id(module._bn) for module in model.modules() if isinstance(module, InstanceAwareBatchNorm)}
    names = [name for name, m in model.named_modules() if name and isinstance(m, _BatchNorm) and id(m) not in wrapped]
    for name in names:
        norm = model.get_submodule(name)
        model.set_submodule(name, InstanceAwareBatchNorm(norm, k, skip_threshold).train(norm.training))
    return names
