"""Training multi-exit networks: the weights of the exits' losses rise while the training runs.

    model = MultiExitForImageClassification.from_base("my-classifier", train_mode="sdn")
    Trainer(model, ..., callbacks=[ExitLossCallback()]).train()

Shallow-Deep Networks (arXiv 1810.07052), section 4.1: tau_i = min(max_i, 0.01 + progress * max_i), so that deep layers come first.
On purpose otherwise than there: the weights rise with every optimizer step instead of every epoch, and start at 0.01 instead of after a
first step of 1 / epochs. With `train_mode="ic_only"` there is nothing to schedule, and the callback does nothing.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ExitLossCallback(TrainerCallback):
    """Tells a multi-exit model how far its training is; afterwards the weights are the largest, as without the callback."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if not hasattr(model, "exit_loss_progress"):
            raise ValueError(f"{type(model).__name__} has no exits whose losses could be weighted")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        model.exit_loss_progress = state.global_step / state.max_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        model.exit_loss_progress = 1.0


__all__ = ["ExitLossCallback"]
