"""The survey on faster and lighter transformers: what other attentions cost in accuracy, untrained and trained."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification, set_seed

from hf_ext.benchmarks.survey_faster_lighter import CAUSAL, CHANNELS, FORMS, HEADS, RANK
from hf_ext.data.listops import VOCABULARY, listops
from hf_ext.ops.efficient_attention import random_features
from hf_ext.reproductions import Experiment, Row, Run
from hf_ext.reproductions.training import TensorDataset, train
from hf_ext.techniques.complexity import complexity_report

LENGTH = 64
TRAINED = {
    "full": ("sdpa", {}),
    "window of 8, one global": ("window_global", {"window": 8, "num_global": 1}),
    "linear": ("linear_elu", {}),
}


def errors(run: Run) -> list[Row]:
    """What each form gives in place of softmax attention on random inputs: none is meant to be equal without training."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, 512, CHANNELS, generator=generator).unbind()
    extras = {
        "features": random_features(RANK, CHANNELS),
        "projection": torch.randn(RANK, 512, generator=generator) * 512**-0.5,
    }
    rows = []
    for name, form in FORMS.items():
        exact = F.scaled_dot_product_attention(q, k, v, is_causal=name in CAUSAL)
        rows.append(
            Row(
                f"error against full attention, {name}",
                ((form(q, k, v, **extras) - exact).norm() / exact.norm()).item(),
            )
        )
    report = complexity_report(BertConfig(), lengths=(512, 8192))
    rows += [
        Row(f"operations at 8192 tokens / at 512, {name}", values[8192][0] / values[512][0])
        for name, values in report.items()
    ]
    return rows


def trained(run: Run) -> list[Row]:
    """ListOps at a reduced size: expressions of up to 64 tokens, a BERT of two layers under three attentions, trained alike."""
    training, test = (listops(count, depth=2, max_length=LENGTH, seed=seed) for count, seed in ((4000, 0), (1000, 1)))
    rows = [Row("accuracy of the most frequent value", test[1].bincount().max().item() / len(test[1]))]
    for name, (implementation, settings) in TRAINED.items():
        set_seed(0)
        config = BertConfig(
            vocab_size=len(VOCABULARY), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=10,
        )  # fmt: skip
        setattr(config, implementation, settings)
        model = BertForSequenceClassification(config)
        model.set_attn_implementation(implementation)
        columns = {"input_ids": training[0], "attention_mask": (training[0] != 0).long(), "labels": training[1]}
        train(
            replace(run, folder=run.folder / implementation),
            model,
            TensorDataset(**columns),
            num_train_epochs=run.options["epochs"],
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            per_device_train_batch_size=32,
        )
        with torch.no_grad():
            logits = torch.cat([model(part, attention_mask=(part != 0).long()).logits for part in test[0].split(250)])
        rows.append(Row(f"accuracy, {name}", (logits.argmax(-1) == test[1]).float().mean().item()))
    return rows


EXPERIMENTS = {
    "errors": Experiment("Error and growth of each attention without training", errors, minutes=0.2),
    "listops": Experiment(
        "Accuracy on ListOps under three attentions",
        trained,
        minutes=3,
        options={"epochs": (4, "passes over the 4,000 expressions")},
    ),
}
