"""Training with PRepBN: norms that move from LayerNorm or RMSNorm to RepBN, in models of hf_ext and of Transformers.

    model = convert_norms(AutoModelForImageClassification.from_pretrained(...))
    Trainer(model, ..., callbacks=[ProgressiveNormCallback(steps=0.8)]).train()
    fuse_repbn(model.eval()).save_pretrained(folder)

Paper: SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization,
arXiv 2405.11582, section 3.1. Reference: xinghaochen/SLAB.
On purpose otherwise than there: the schedule follows the optimizer's steps. Counting forward passes, as the norms do by themselves, makes
it depend on gradient accumulation and on whatever else runs the model in training mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_ext.layers.repbn import LinearNorm
from hf_ext.surgery.repbn import convert_norms, fuse_repbn

logger = logging.get_logger(__name__)


class ProgressiveNormCallback(TrainerCallback):
    """Sets the mixture of every `LinearNorm` from the optimizer's step: the same in each micro-batch and process, and after a resume.

    Args:
        warm: optimizer steps that use LayerNorm (RMSNorm) alone.
        steps: optimizer steps after those, over which RepBN takes over. A float is a share of all steps, up to 1.0; so for `warm`.
            The authors give this stage 16% to 80% of the training of vision models.
    """

    def __init__(self, warm: int | float = 0, steps: int | float = 0.8):
        for name, value, least in (("warm", warm, 0), ("steps", steps, 1)):
            if isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(f"`{name}` is a number of steps or, as a float, a share from 0.0 to 1.0, got {value}")
            if isinstance(value, int) and value < least:
                raise ValueError(f"`{name}` must be at least {least} steps, got {value}")
        self.warm, self.steps = warm, steps

    def schedule(self, max_steps: int) -> tuple[int, int]:
        """The lengths of both stages, in optimizer steps."""
        warm, steps = (round(v * max_steps) if isinstance(v, float) else v for v in (self.warm, self.steps))
        return warm, max(steps, 1)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if not any(progressive_norms(model)):
            raise ValueError(f"{type(model).__name__} has no progressive norm: make it with `convert_norms`")
        warm, steps = self.schedule(state.max_steps)
        if warm + steps > state.max_steps:
            logger.warning(
                f"Training ends at step {state.max_steps}, but RepBN alone, which is what inference uses, is reached only at step "
                f"{warm + steps}"
            )
        self._drive(model, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._drive(model, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._drive(model, state)  # a checkpoint saved now holds the counters of this step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        for norm in progressive_norms(model):
            norm.driven = False

    def _drive(self, model: nn.Module, state: TrainerState) -> None:
        warm, steps = self.schedule(state.max_steps)
        for norm in progressive_norms(model):
            norm.drive(state.global_step, warm, steps)


def progressive_norms(model: nn.Module) -> Iterator[LinearNorm]:
    """Every `LinearNorm` of the model, in the order of its modules."""
    return (module for module in model.modules() if isinstance(module, LinearNorm))


__all__ = ["ProgressiveNormCallback", "convert_norms", "fuse_repbn", "progressive_norms"]
