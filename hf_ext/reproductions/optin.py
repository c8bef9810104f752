"""OPTIN on a small ViT for handwritten digits: accuracy without any training after pruning, against other choices at equal operations."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_ext.data.digits import handwritten_digits
from hf_ext.data.text import byte_perplexity, sklearn_descriptions, windows
from hf_ext.files import atomic_folder, replaced_files
from hf_ext.surgery import apply
from hf_ext.surgery.families import Branch
from hf_ext.surgery.optin import Scores, Scoring, compress, rank, search
from hf_ext.surgery.units import prunable

from . import Experiment, MissingData, Row, Run
from .llm_drop import CONTEXT, load_llama

CALIBRATION = 128  # training images, as in the paper
BUDGETS = (0.8, 0.6, 0.4)
DATASET = "scikit-learn digits, a fifth held out"


def train_vit(run: Run) -> list[Row]:
    """Trains the small ViT of the card, prunes it to 0.6 of its operations, and saves both there."""
    from .training import TensorDataset, train

    torch.manual_seed(0)
    names = [str(digit) for digit in range(10)]
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            hidden_dropout_prob=0.1,
            id2label=dict(enumerate(names)),
            label2id={name: digit for digit, name in enumerate(names)},
        )
    )
    processor = ViTImageProcessor(
        size={"height": 8, "width": 8}, do_convert_rgb=True, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    training, held_out = digits(processor)
    train(
        run,
        model,
        TensorDataset(**training),
        num_train_epochs=int(run.options["epochs"]),
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.05,
    )
    smaller = compress(model, {"pixel_values": training["pixel_values"][:CALIBRATION]}, flops=0.6)
    with atomic_folder(run.card / "dense") as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    with replaced_files(run.card) as folder:
        smaller.save_pretrained(folder)
        processor.save_pretrained(folder)
    return [
        Row("held-out accuracy, dense", accuracy(model, held_out)),
        Row(
            "held-out accuracy, 0.6 of the operations",
            accuracy(smaller, held_out),
            dataset=DATASET,
            metric_type="accuracy",
        ),
        Row("parameters, dense", model.num_parameters()),
        Row("parameters, 0.6 of the operations", smaller.num_parameters()),
    ]


def digits(processor: ViTImageProcessor) -> tuple[dict[str, torch.Tensor], ...]:
    return tuple(
        {
            "pixel_values": processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"],
            "labels": torch.tensor(labels),
        }
        for images, labels in handwritten_digits()
    )


@torch.no_grad()
def accuracy(model: ViTForImageClassification, data: dict[str, torch.Tensor]) -> float:
    return (model(data["pixel_values"]).logits.argmax(-1) == data["labels"]).float().mean().item()


def compare_choices(run: Run) -> list[Row]:
    """Accuracy of the pruned ViT when units are chosen by OPTIN, by magnitude and by chance, and with parts of OPTIN changed."""
    folder = run.card / "dense"
    if not (folder / "model.safetensors").is_file():
        raise MissingData("The small ViT is not trained yet: run `hf-ext reproduce optin --experiment demo` first")
    model = ViTForImageClassification.from_pretrained(folder).eval()
    training, held_out = digits(ViTImageProcessor.from_pretrained(folder))
    calibration = {"pixel_values": training["pixel_values"][:CALIBRATION]}
    scores = rank(model, calibration, tokens=True)
    by_magnitude = scored(model, scores, magnitudes)
    seeds = range(int(run.options["seeds"]))
    by_chance = [scored(model, scores, chance(seed)) for seed in seeds]

    def at(choice: Scores, flops: float, tokens: float = 0.0) -> float:
        return accuracy(apply(model, search(choice, flops, tokens)), held_out)

    rows = [Row("accuracy, dense", accuracy(model, held_out))]
    for flops in BUDGETS:
        random = [at(choice, flops) for choice in by_chance]
        note = f"magnitude: {at(by_magnitude, flops):.4f}; random choice: {statistics.mean(random):.4f} (mean of {len(random)})"
        rows.append(Row(f"accuracy, {flops} of the operations", at(scores, flops), note=note))
    variants = {
        "index priors": Scoring(head_index_prior=10, neuron_index_prior=100),
        "leak of the head mask": Scoring(leak_head_mask=True),
        "index priors and leak, as in the authors' code": Scoring.reference(),
        "features alone (MMD)": Scoring(loss_type="MMD"),
        "logits alone (KL)": Scoring(loss_type="KL"),
        "relations between samples": Scoring(relations="samples"),
    }
    for name, scoring in variants.items():
        choice = rank(model, calibration, scoring)
        rows.append(
            Row(
                f"accuracy, 0.6, {name}",
                at(choice, 0.6),
                note=", ".join(f"{b}: {at(choice, b):.4f}" for b in (0.8, 0.4)),
            )
        )
    for share in (0.3, 0.6):
        rows.append(
            Row(
                f"accuracy, 0.6, {share} of the saving by merging tokens",
                at(scores, 0.6, share),
                note=", ".join(f"{b}: {at(scores, b, share):.4f}" for b in (0.8, 0.4)),
            )
        )
    return rows


def compare_on_text(run: Run) -> list[Row]:
    """Perplexity of the byte-level Llama of the card of LLM-Drop, pruned; a few windows of its training text calibrate."""
    model, tokenizer = load_llama(Run("llm_drop", run.folder, {}))
    text, held_out = sklearn_descriptions()
    validation = windows(held_out, CONTEXT, tokenizer)
    calibration = {"input_ids": windows(text, CONTEXT, tokenizer)[: int(run.options["windows"])]}
    scores = rank(model, calibration)
    choices = {"magnitude": scored(model, scores, magnitudes), "random choice": scored(model, scores, chance(0))}

    def at(choice: Scores, flops: float) -> float:
        return byte_perplexity(apply(model, search(choice, flops)), validation)

    rows = [Row("perplexity per byte, dense", byte_perplexity(model, validation))]
    for flops in (0.9, 0.8, 0.7):
        note = "; ".join(f"{name}: {at(choice, flops):.2f}" for name, choice in choices.items())
        rows.append(Row(f"perplexity per byte, {flops} of the operations", at(scores, flops), note=note))
    return rows


def scored(model: PreTrainedModel, scores: Scores, measure: Callable[..., torch.Tensor]) -> Scores:
    """The same costs with other scores; `measure(layer, branch, units)` gives the importance of a branch's units."""
    family, layers = prunable(model)
    heads, neurons = (
        [-measure(layer, branch, len(row)).double() for layer, row in zip(layers, rows)]
        for branch, rows in ((family.attention, scores.heads), (family.mlp, scores.neurons))
    )
    return Scores(heads, neurons, scores.head_macs, scores.neuron_macs, scores.attention_macs, scores.fixed_macs)


def magnitudes(layer: nn.Module, branch: Branch, count: int) -> torch.Tensor:
    """The sum of squares of the weights that a unit owns, for each of them"""
    ends = [layer.get_submodule(name).weight for name in branch.inputs] + [layer.get_submodule(branch.output).weight.T]
    return sum(weight.detach().square().sum(1).view(count, -1).sum(1) for weight in ends)


def chance(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda layer, branch, count: torch.rand(count, generator=generator)


EXPERIMENTS = {
    "prune": Experiment(
        "Accuracy without retraining, by what is pruned",
        compare_choices,
        minutes=2,
        options={"seeds": (3, "random choices")},
    ),
    "text": Experiment(
        "Perplexity of a small language model",
        compare_on_text,
        minutes=3,
        options={"windows": (8, "windows of 128 bytes that calibrate")},
    ),
    "demo": Experiment(
        "The small ViT that the card ships",
        train_vit,
        minutes=3,
        options={"epochs": (40, "passes over the 1437 training images")},
    ),
}
