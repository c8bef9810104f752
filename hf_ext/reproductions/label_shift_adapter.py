"""Label shift adapter: digits with a long-tailed source, noise and shifted labels at test time; and the small model that the card ships."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
)
from transformers.utils.logging import tqdm

from hf_ext.adapters.label_shift_adapter import LabelShiftAdapterForImageClassification
from hf_ext.data.digits import handwritten_digits
from hf_ext.files import replaced_files
from hf_ext.training.label_shift import cache_features, label_counts, long_tail, train_adapter
from hf_ext.training.test_time_adaptation import TestTimeAdapter

from . import Experiment, Row, Run
from .crossvit import AugmentedDigits

CLASSES, SIZE, BATCH, TAIL, VIEWS = 10, 32, 64, 20.0, 10
SEEDS = (0, 1, 2)
# the labels of the target: as in the source, all alike, and the other way round
TARGETS = {"forward": 1.0, "uniform": 0.0, "backward": -1.0}
METHODS = ("none", "norm", "tent", "iabn", "note", "lame")


class ShiftedDigits:
    """Half of the digits with a long tail over a random order of the classes, the other half noisy and with labels of any distribution.

    Args:
        seed: of the order, of the split and of the draws.
        noise: standard deviation; pixels lie in [-1, 1].
    """

    def __init__(self, seed: int, noise: float):
        (images, labels), held_out = handwritten_digits(held_out_share=0.5, seed=seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.noise = noise
        tail = torch.empty(CLASSES)
        tail[torch.randperm(CLASSES, generator=self.generator)] = long_tail(CLASSES, TAIL)
        self.tail = tail / tail.sum()
        pixels, labels = prepared(images), torch.tensor(labels)
        share = self.tail / self.tail.max()
        kept = [
            self._of(labels, k)[: max(1, round(share[k].item() * (labels == k).sum().item()))] for k in range(CLASSES)
        ]
        self.source = pixels[torch.cat(kept)], labels[torch.cat(kept)]
        self.held_out = prepared(held_out[0]), torch.tensor(held_out[1])

    def _of(self, labels: torch.Tensor, k: int) -> torch.Tensor:
        found = (labels == k).nonzero()[:, 0]
        return found[torch.randperm(len(found), generator=self.generator)]

    def distribution(self, exponent: float) -> torch.Tensor:
        return (exponent * self.tail.log()).softmax(0)

    def target(self, exponent: float, samples: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Noisy batches whose labels follow the source's distribution to that power."""
        pixels, labels = self.held_out
        weights = (self.distribution(exponent) / label_counts(labels, CLASSES))[labels]
        drawn = torch.multinomial(weights, samples, replacement=True, generator=self.generator)
        noise = self.noise * torch.randn(samples, *pixels.shape[1:], generator=self.generator)
        return list(zip((pixels[drawn] + noise).split(BATCH), labels[drawn].split(BATCH)))


def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def prepared(images: list) -> torch.Tensor:
    return processor()([image.convert("RGB") for image in images], return_tensors="pt").pixel_values


def train_source(run: Run, data: ShiftedDigits, seed: int, epochs: int) -> PreTrainedModel:
    """A ResNet of 3 stages, by plain cross-entropy on the long-tailed source, turned and moved a little."""
    from .training import train

    torch.manual_seed(seed)
    names = [str(digit) for digit in range(CLASSES)]
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: digit for digit, name in enumerate(names)},
    )
    pixels, labels = data.source
    return train(
        replace(run, folder=run.folder / f"source-{seed}"),
        ResNetForImageClassification(config),
        AugmentedDigits(pixels, labels.tolist(), epochs),
        num_train_epochs=1,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        seed=seed,
    )


def with_adapter(
    run: Run, base: PreTrainedModel, data: ShiftedDigits, seed: int, epochs: int
) -> LabelShiftAdapterForImageClassification:
    """The classifier with an adapter, trained on its features of the source, seen `VIEWS` times as the classifier saw it."""
    torch.manual_seed(seed)
    model = LabelShiftAdapterForImageClassification.from_base(base)
    pixels, labels = data.source
    views = DataLoader(AugmentedDigits(pixels, labels.tolist(), VIEWS), batch_size=256)
    features, labels = cache_features(model, tqdm(views, desc="features"))
    output = str(run.folder / f"adapter-{seed}")
    return train_adapter(model, features, labels, output, num_train_epochs=epochs, seed=seed, logging_steps=1000)


def accuracy(engine: TestTimeAdapter, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Percent, over the whole stream."""
    right = sum((engine(x).logits.argmax(-1) == y).sum().item() for x, y in batches)
    engine.reset()
    return 100 * right / sum(len(y) for _, y in batches)


def compared(
    model: LabelShiftAdapterForImageClassification, data: ShiftedDigits, samples: int
) -> Iterator[tuple[str, float]]:
    """Accuracies of one model: each method without and with the adapter on the same streams, and the oracle."""
    for target, exponent in TARGETS.items():
        batches = data.target(exponent, samples)
        for method in METHODS:
            for adapted in (False, True):
                engine = TestTimeAdapter(model, method, label_shift=adapted)
                yield f"{target}/{method}{'+' * adapted}", accuracy(engine, batches)
        oracle = TestTimeAdapter(model, "prior_correction", target_distribution=data.distribution(exponent))
        yield f"{target}/oracle", accuracy(oracle, batches)


def measure_shifts(run: Run) -> list[Row]:
    """Accuracies over three seeds."""
    found: dict[str, list[float]] = {}
    for seed in tqdm(SEEDS, desc="seeds"):
        data = ShiftedDigits(seed, float(run.options["noise"]))
        base = train_source(run, data, seed, int(run.options["epochs"]))
        model = with_adapter(run, base, data, seed, int(run.options["adapter_epochs"]))
        for name, value in compared(model, data, int(run.options["samples"])):
            found.setdefault(name, []).append(value)
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    rows = []
    for target in TARGETS:
        for method in METHODS:
            plain, adapted = mean[f"{target}/{method}"], mean[f"{target}/{method}+"]
            gain = f"without the adapter: {plain:.1f}; gain {adapted - plain:+.1f}"
            rows.append(Row(f"accuracy (%), labels {target}, {method} + adapter", round(adapted, 2), note=gain))
        rows.append(
            Row(
                f"accuracy (%), labels {target}, prior correction",
                round(mean[f"{target}/oracle"], 2),
                note="told the distribution",
            )
        )
    return rows


def train_demo(run: Run) -> list[Row]:
    """Trains the first seed's classifier and adapter, and measures what the card ships on noisy digits whose labels are turned round."""
    data = ShiftedDigits(0, float(run.options["noise"]))
    base = train_source(run, data, 0, int(run.options["epochs"]))
    model = with_adapter(run, base, data, 0, int(run.options["adapter_epochs"]))
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
        processor().save_pretrained(folder)
    shipped = AutoModelForImageClassification.from_pretrained(run.card)
    batches = data.target(TARGETS["backward"], int(run.options["samples"]))
    rows = [Row("parameters", shipped.num_parameters()), Row("of which the adapter", num_parameters(shipped.adapter))]
    for adapted in (False, True):
        engine = TestTimeAdapter(shipped, "iabn", label_shift=adapted)
        name = f"accuracy, {'IABN with the adapter' if adapted else 'IABN alone'}"
        noisy = "scikit-learn digits, noisy, labels turned round"
        rows.append(Row(name, round(accuracy(engine, batches) / 100, 4), dataset=noisy, metric_type="accuracy"))
    return rows


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


OPTIONS = {
    "epochs": (40, "of the source training"),
    "adapter_epochs": (15, "of the adapter's training"),
    "noise": (0.3, "standard deviation of the target's noise; pixels lie in [-1, 1]"),
    "samples": (1024, "of each target stream"),
}
STRONG = OPTIONS | {"noise": (0.6, OPTIONS["noise"][1])}
EXPERIMENTS = {
    "shifts": Experiment("Accuracy under noise of 0.3 and shifted labels", measure_shifts, 2.5, OPTIONS),
    "strong_noise": Experiment("Accuracy under noise of 0.6 and shifted labels", measure_shifts, 2.5, STRONG),
    "demo": Experiment("The digit classifier that the card ships", train_demo, 0.5, OPTIONS),
}
