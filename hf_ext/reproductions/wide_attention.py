"""Wide Attention: one wide layer against many narrow ones with as many heads, trained alike from scratch."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import set_seed

from hf_ext.data.listops import VOCABULARY, listops
from hf_ext.data.text import source_windows
from hf_ext.models.wide_attention import WideAttentionConfig, WideAttentionForSequenceClassification
from hf_ext.reproductions import Experiment, Row, Run
from hf_ext.reproductions.training import TensorDataset, train

PACKAGES = ("torch", "transformers", "sklearn", "pandas")
SIZES = {
    "hidden_size": 64,
    "head_dim": 16,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def value_of_lists(run: Run) -> list[Row]:
    """ListOps at the reduced size: 5,000 expressions of up to 100 tokens, 1,000 others to test on."""
    training, test = listops(5000), listops(1000, seed=1)
    sizes = SIZES | {"vocab_size": len(VOCABULARY), "num_labels": 10, "max_position_embeddings": 100}
    largest = test[1].bincount().max().item() / len(test[1])
    rows = sweep(run, training, test, sizes)
    return [*rows, Row("accuracy of the most frequent value", largest)]


def whose_code(run: Run) -> list[Row]:
    """Bytes of Python files to the package they are from; test files are others than those trained on."""
    training = source_windows(PACKAGES, 200, 1000)
    test = source_windows(PACKAGES, 200, 250, held_out=True)
    return sweep(run, training, test, SIZES | {"num_labels": len(PACKAGES), "max_position_embeddings": 200})


def sweep(run: Run, training: tuple[torch.Tensor, ...], test: tuple[torch.Tensor, ...], sizes: dict) -> list[Row]:
    """Accuracy and parameters of 4 x 2, 2 x 4 and 1 x 8 heads."""
    dataset = TensorDataset(input_ids=training[0], labels=training[1])
    rows = []
    for config in WideAttentionConfig.aspect_ratios(8, **sizes):
        if config.num_hidden_layers == 8:
            continue
        name = f"{config.num_hidden_layers} x {config.num_attention_heads}"
        set_seed(0)
        model = WideAttentionForSequenceClassification(config)
        folder = run.folder / name.replace(" ", "")
        train(
            replace(run, folder=folder),
            model,
            dataset,
            num_train_epochs=run.options["epochs"],
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            per_device_train_batch_size=32,
        )
        with torch.no_grad():
            logits = torch.cat([model(part).logits for part in test[0].split(250)])
        parameters = sum(parameter.numel() for parameter in model.parameters())
        accuracy = (logits.argmax(-1) == test[1]).float().mean().item()
        rows.append(Row(f"accuracy, {name} heads", accuracy, note=f"{parameters:,} parameters"))
    return rows


EXPERIMENTS = {
    "listops": Experiment(
        "Accuracy on ListOps by aspect ratio",
        value_of_lists,
        minutes=3,
        options={"epochs": (5, "passes over the data")},
    ),
    "bytes": Experiment(
        "Which package code is from, byte by byte, by aspect ratio",
        whose_code,
        minutes=4,
        options={"epochs": (5, "passes over the data")},
    ),
}
