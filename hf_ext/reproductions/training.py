"""`Trainer` for experiments: seeded, resumable from the run's folder, on whatever device there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
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


class ResumingTrainer(Trainer):
    """Reads checkpoints back as `from_pretrained` does.

    `save_pretrained` gives some models' weights their old names (ViT's, for one), which `Trainer` does not translate: it warns of
    missing keys and goes on with what the model had.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        if isinstance(model, PreTrainedModel):
            model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint).state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if isinstance(self.model, PreTrainedModel):
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()


def train(
    run: Run,
    model: nn.Module,
    dataset: Dataset,
    validation: Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    collator: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Trains in place; picks an interrupted training up at its last checkpoint in `run.folder`.

    With `validation`, the weights of the lowest validation loss, looked at each `save_steps`, are what remains.
    `collator` makes batches of what the dataset gives, Trainer's own where it is None.
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
    trainer = ResumingTrainer(
        model=model,
        args=TrainingArguments(**(defaults | arguments)),
        train_dataset=dataset,
        eval_dataset=validation,
        data_collator=collator,
        callbacks=list(callbacks),
    )
    last = get_last_checkpoint(str(run.folder)) if run.folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return model.eval()
