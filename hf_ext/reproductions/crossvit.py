"""CrossViT: the size and cost of all published models, and the small digit classifier that the card ships."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import pipeline
from transformers.utils.logging import tqdm

from hf_ext.data.digits import handwritten_digits
from hf_ext.files import replaced_files
from hf_ext.models.crossvit import CrossVitConfig, CrossVitForImageClassification, CrossVitImageProcessor

from . import Experiment, Row, Run

# the paper's GFLOPs, which count a multiply-add as one
PAPER = {
    "crossvit-tiny-224": "1.6",
    "crossvit-small-224": "5.6",
    "crossvit-base-224": "21.2",
    "crossvit-9-224": "1.8",
    "crossvit-15-224": "5.8",
    "crossvit-18-224": "9.0",
    "crossvit-9-dagger-224": "2.0",
    "crossvit-15-dagger-224": "6.1",
    "crossvit-18-dagger-224": "9.5",
    "crossvit-15-dagger-384": "21.4",
    "crossvit-18-dagger-384": "32.4",
}


def measure_presets(run: Run) -> list[Row]:
    """Parameters, and multiply-adds for one image of the first branch's size."""
    rows = []
    for name in tqdm(CrossVitConfig.PRESETS, desc="presets"):
        config = CrossVitConfig.from_preset(name, attn_implementation="eager")
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            model = CrossVitForImageClassification(config).eval()
            model(torch.empty(1, 3, config.image_sizes[0], config.image_sizes[0]))
        rows.append(Row(f"multiply-adds, {name} (G)", counter.get_total_flops() / 2e9, PAPER[name]))
        rows.append(Row(f"parameters, {name}", model.num_parameters()))
    return rows


@torch.no_grad()
def measure_fusion(run: Run) -> list[Row]:
    """How the time of a fusion and of a self-attention layer grows with the number of patches (width 384, one thread)."""
    config = CrossVitConfig.from_preset("crossvit-15-224")
    stage = CrossVitForImageClassification(config).eval().crossvit.stages[0]
    layers = {
        "fusion": lambda tokens: stage.fusions[0](torch.zeros(1, 1, config.hidden_sizes[0]), tokens),
        "self-attention layer": stage.branches[1][0],
    }
    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for name, layer in layers.items():
        few, many = (_seconds(layer, torch.randn(1, count, config.hidden_sizes[1])) for count in (512, 4096))
        rows.append(Row(f"time for 4096 patches over time for 512, {name}", many / few, note="linear growth: 8"))
    torch.set_num_threads(threads)
    return rows


def _seconds(layer: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor, runs: int = 9) -> float:
    """The median, in processor time, which other programs on the machine disturb least."""

    def once() -> float:
        start = time.process_time()
        layer(tokens)
        return time.process_time() - start

    once()
    return statistics.median(once() for _ in range(runs))


class AugmentedDigits(Dataset):
    """Digits that are turned, scaled and moved a little, differently in each epoch. Item `i` is the same in every run.

    Args:
        pixel_values: (N, 3, H, W).
        labels: N classes.
        epochs: how often each digit comes.
    """

    def __init__(self, pixel_values: torch.Tensor, labels: list[int], epochs: int):
        self.pixel_values, self.labels, self.epochs = pixel_values, labels, epochs

    def __len__(self) -> int:
        return len(self.labels) * self.epochs

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        uniform = torch.rand(4, generator=torch.Generator().manual_seed(index)) * 2 - 1
        angle, scale = uniform[0].item() * math.radians(12), 1 + 0.1 * uniform[1].item()
        cos, sin, (x, y) = math.cos(angle) * scale, math.sin(angle) * scale, (uniform[2:] * 0.12).tolist()
        image = self.pixel_values[index % len(self.labels)][None]
        grid = F.affine_grid(torch.tensor([[[cos, -sin, x], [sin, cos, y]]]), list(image.shape), align_corners=False)
        moved = F.grid_sample(image, grid, padding_mode="border", align_corners=False)[0]
        return {"pixel_values": moved, "labels": torch.tensor(self.labels[index % len(self.labels)])}


def train_demo(run: Run) -> list[Row]:
    """Trains on four fifths of the digits and measures the accuracy on the rest, through the pipeline that users call."""
    from .training import train

    torch.manual_seed(0)
    (images, labels), held_out = handwritten_digits()
    names = [str(digit) for digit in range(10)]
    config = CrossVitConfig(
        image_sizes=[24, 24],
        patch_sizes=[4, 6],
        hidden_sizes=[48, 96],
        depths=[[1, 2, 0], [1, 2, 0]],
        num_attention_heads=[3, 3],
        mlp_ratios=[2, 2],
        drop_path_rate=0.05,
        id2label=dict(enumerate(names)),
        label2id={name: digit for digit, name in enumerate(names)},
    )
    processor = CrossVitImageProcessor(
        size={"height": 24, "width": 24}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    model = CrossVitForImageClassification(config)
    epochs = int(run.options["epochs"])
    train(
        run,
        model,
        AugmentedDigits(processor(images, return_tensors="pt").pixel_values, labels, epochs),
        num_train_epochs=1,
        save_steps=250,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.05,
    )
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return evaluate_demo(run, *held_out)


def evaluate_demo(run: Run, images: list, labels: list[int]) -> list[Row]:
    classify = pipeline("image-classification", str(run.card), batch_size=64)
    predicted = [int(classes[0]["label"]) for classes in classify(images, top_k=1)]
    accuracy = sum(a == b for a, b in zip(predicted, labels)) / len(labels)
    name = "scikit-learn digits"
    return [
        Row(f"accuracy on {len(labels)} digits not trained on", accuracy, dataset=name, metric_type="accuracy"),
        Row("parameters", classify.model.num_parameters()),
    ]


EXPERIMENTS = {
    "presets": Experiment("Parameters and multiply-adds of the published models", measure_presets, minutes=0.5),
    "fusion": Experiment("How the time of a fusion grows with the number of patches", measure_fusion, minutes=0.2),
    "demo": Experiment(
        "The digit classifier that the card ships",
        train_demo,
        minutes=3,
        options={"epochs": (60, "times that each digit comes, differently turned and moved")},
    ),
}
