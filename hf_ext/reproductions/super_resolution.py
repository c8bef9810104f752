"""What small super-resolution models are trained and measured on."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, pipeline

from hf_ext.data.photos import HELD_OUT, NOT_TRAINED_ON, PHOTOGRAPHS, SuperResolutionCrops, degrade, photograph, psnr_y
from hf_ext.files import replaced_files
from hf_ext.pipelines.tiling import tiled

from . import MissingData, Row, Run
from .training import train


def load_demo(run: Run):
    """The pipeline with the card's small model."""
    if not (run.card / "model.safetensors").is_file():
        raise MissingData(
            f"The small model is not trained yet: run `hf-ext reproduce {run.slug} --experiment demo` first"
        )
    return pipeline("image-to-image", str(run.card))


def training_crops(scale: int, size: int, length: int) -> SuperResolutionCrops:
    """Crops of the ten photographs that models may see."""
    images = [photograph(name) for name in PHOTOGRAPHS if name not in NOT_TRAINED_ON]
    return SuperResolutionCrops(images, scale=scale, size=size, length=length)


def train_demo(run: Run, model: PreTrainedModel, processor: Any, title: str) -> list[Row]:
    """Trains a small x2 model on the ten photographs, saves it with its processor into the card, and compares it with bicubic."""
    steps, batch_size = int(run.options["steps"]), 8
    train(
        run,
        model,
        training_crops(scale=2, size=24, length=steps * batch_size),
        max_steps=steps,
        save_steps=250,
        per_device_train_batch_size=batch_size,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        adam_beta2=0.99,
    )
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return [*compare_with_bicubic(load_demo(run), title, scale=2), Row("parameters", model.num_parameters())]


def compare_with_bicubic(restore, title: str, scale: int) -> list[Row]:
    """PSNR-Y of bicubic and of the pipeline `restore` on the photographs that it was not trained on."""
    rows = []
    for name in NOT_TRAINED_ON:
        low, high = degrade(photograph(name), scale)
        bicubic = low.resize(high.size, Image.Resampling.BICUBIC)
        rows += [
            Row(f"PSNR-Y of bicubic on {name}.jpg, not trained on (dB)", psnr_y(bicubic, high, border=scale)),
            Row(
                f"PSNR-Y of {title} on {name}.jpg, not trained on (dB)",
                psnr_y(restore(low), high, border=scale),
                dataset=f"{name}.jpg of scikit-learn, x{scale}",
                metric_type="psnr",
            ),
        ]
    return rows


def measure_tiling(run: Run) -> list[Row]:
    """How close tiles come to the whole image, against their overlap: the card's x2 model on a photograph it was not trained on."""
    restore, size = load_demo(run), int(run.options["tile_size"])
    low, _ = degrade(photograph(HELD_OUT), 2)
    pixel_values = restore.image_processor(low, return_tensors="pt").pixel_values
    forward = torch.no_grad()(lambda images: restore.model(images).reconstruction)
    whole = forward(pixel_values)
    multiple = getattr(restore.model.config, "window_size", 1)
    rows = []
    for overlap in (0, 8, 16, 24, 32, 48):
        parts = tiled(forward, pixel_values, size, overlap, multiple, f"overlap {overlap}")
        psnr = -10 * (parts - whole).square().mean().log10().item()
        rows.append(Row(f"PSNR of tiles of {size} against the whole image (dB), overlap {overlap}", psnr))
    return rows
