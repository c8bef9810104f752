"""Training a label shift adapter (arXiv 2308.08810) on source data: the loss, and the adapter alone on features computed once.

    model = LabelShiftAdapterForImageClassification.from_base("my-classifier")
    features, labels = cache_features(model, batches)               # the frozen base runs once
    train_adapter(model, features, labels, num_train_epochs=15, output_dir="out")
    model.save_pretrained("my-classifier-adapted")

Or with images that change from epoch to epoch: `model.freeze_base()`, then `Trainer(model, ...)`; the model's loss is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_ext.adapters.label_shift_adapter import LabelShiftAdapterPreTrainedModel, adapted_logits
from hf_ext.adapters.label_shift_adapter.distributions import (
    generalized_logit_adjusted_loss,
    imbalance_degree,
    label_counts,
    long_tail,
    sampled_distribution,
)
from hf_ext.layers.classifiers import classify_with_features

# Adam without decay at a constant rate, 15 epochs
DEFAULTS = {
    "num_train_epochs": 15,
    "per_device_train_batch_size": 64,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
}


@torch.no_grad()
def cache_features(
    model: LabelShiftAdapterPreTrainedModel, batches: Iterable[Mapping[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the last layers of the base, in eval mode, over a data set: features (N, D) and labels (N,), on the CPU.

    Args:
        batches: forward arguments with `labels`.

    Raises:
        ValueError: no batches, no labels in one, or a base whose logits are no linear function of the features.
    """
    training = model.base.training
    model.base.eval()
    features, labels = [], []
    for batch in batches:
        inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        if (answers := inputs.pop("labels", None)) is None:
            raise ValueError(f"Training an adapter needs `labels`; the batch holds {', '.join(inputs)}")
        outputs, wide = classify_with_features(model.base, model.classifier_names, inputs)
        if not features:
            _check_linear(model, wide, outputs.logits)
        features.append(wide.float().cpu())
        labels.append(answers.cpu())
    model.base.train(training)
    if not features:
        raise ValueError("There are no batches to compute features of")
    return torch.cat(features), torch.cat(labels)


def linear_form(model: LabelShiftAdapterPreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The last layers of the base as one: weight (K, D), bias (K,). The logits of several are their mean."""
    heads = model.classifiers
    biases = [head.weight.new_zeros(head.out_features) if head.bias is None else head.bias for head in heads]
    return torch.cat([head.weight for head in heads], 1) / len(heads), torch.stack(biases).mean(0)


def _check_linear(model: LabelShiftAdapterPreTrainedModel, features: torch.Tensor, logits: torch.Tensor) -> None:
    weight, bias = linear_form(model)
    expected = nn.functional.linear(features, weight, bias)
    if (expected - logits).norm() > 0.02 * logits.norm():
        raise ValueError(
            f"The logits of {type(model.base).__name__} are not those of its last layers "
            f"({', '.join(model.classifier_names)}) alone; train the adapter with `freeze_base()` and Trainer instead"
        )


class CachedFeatureTask(nn.Module):
    """The adapter between features and loss, for `Trainer`; its parameters are the model's own.

    Several last layers share one adjustment, whose difference of the weights counts for each as it is.
    """

    def __init__(self, model: LabelShiftAdapterPreTrainedModel):
        super().__init__()
        self.adapter = model.adapter
        self._model = [model]  # not a submodule: the base is neither trained nor saved here
        weight, bias = linear_form(model)
        self.register_buffer("weight", weight.detach().float().clone(), persistent=False)
        self.register_buffer("bias", bias.detach().float().clone(), persistent=False)

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, D), (B,) -> `loss` and `logits` (B, K), for a distribution that is drawn in training."""
        model = self._model[0]
        distribution = model.draw_distribution() if self.training else model.label_distribution
        adjustment = self.adapter(imbalance_degree(model.mapping_vector.float(), distribution.float()))
        if adjustment.weight_delta is not None:
            adjustment = adjustment._replace(weight_delta=adjustment.weight_delta / len(model.classifiers))
        logits = adapted_logits(features, self.weight, self.bias, adjustment)
        source = model.source_distribution
        return {
            "loss": generalized_logit_adjusted_loss(logits, labels, source, distribution, model.config.tau),
            "logits": logits,
        }


class FeatureDataset(Dataset):
    """Rows of features and labels."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"features": self.features[index], "labels": self.labels[index]}


def train_adapter(
    model: LabelShiftAdapterPreTrainedModel,
    features: torch.Tensor,
    labels: torch.Tensor,
    output_dir: str,
    resume_from_checkpoint: bool | str | None = None,
    **arguments: Any,
) -> LabelShiftAdapterPreTrainedModel:
    """Tells the model how the labels are distributed and trains its adapter, in place.

    Args:
        features, labels: (N, D) and (N,), of `cache_features`.
        output_dir: for checkpoints.
        resume_from_checkpoint: as for `Trainer.train`.
        arguments: `TrainingArguments`; left out, Adam at 1e-3, batches of 64, 15 epochs.

    Raises:
        ValueError: labels that are no classes of the model.
    """
    if labels.numel() == 0 or not 0 <= int(labels.min()) <= int(labels.max()) < model.config.num_labels:
        raise ValueError(f"`labels` must be classes from 0 to {model.config.num_labels - 1}, one or more")
    model.set_source_distribution(label_counts(labels, model.config.num_labels))
    model.adapter.requires_grad_(True)
    settings = {"output_dir": output_dir, "report_to": "none", "save_strategy": "no", "dataloader_pin_memory": False}
    trainer = Trainer(
        CachedFeatureTask(model).to(model.device),
        TrainingArguments(**{**settings, **DEFAULTS, **arguments}),
        train_dataset=FeatureDataset(features, labels),
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return model.eval()


__all__ = [
    "CachedFeatureTask",
    "cache_features",
    "generalized_logit_adjusted_loss",
    "label_counts",
    "long_tail",
    "sampled_distribution",
    "train_adapter",
]
