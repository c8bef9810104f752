"""`Trainer` for experiments: seeded, resumable from the run's folder, on whatever device there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from . import Run


class TensorDataset(Dataset):
    """Rows of equally long tensors, as the dicts that `Trainer` collates."""

    def __init__(self, **columns: torch.Tensor):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def train(
    run: Run,
    model: nn.Module,
    dataset: Dataset,
    validation: Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> nn.Module:
    """Trains in place; picks an interrupted training up at its last checkpoint in `run.folder`.

    With `validation`, the weights of the lowest validation loss, looked at each `save_steps`, are what remains.
    `arguments` are `TrainingArguments`; seeds, logging and checkpoints have defaults.
    """
    defaults = {
        "output_dir": str(run.folder),
        "seed": 0,
        "save_strategy": "steps",
        "save_steps": 500,
        "save_total_limit": 1,
        "logging_steps": 100,
        "report_to": "none",
        "dataloader_pin_memory": False,
    }
    if validation is not None:
        steps = arguments.get("save_steps", defaults["save_steps"])
        defaults |= {"eval_strategy": "steps", "eval_steps": steps, "load_best_model_at_end": True}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**(defaults | arguments)),
        train_dataset=dataset,
        eval_dataset=validation,
        callbacks=list(callbacks),
    )
    last = get_last_checkpoint(str(run.folder)) if run.folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return model.eval()
