"""A tiny PixArt-δ pipeline draws digits by their names in four LCM steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from hf_ext.reproductions.pixart_delta import draw, recognised, sample

from . import Picture, Shown, Track

PER_DIGIT = 20


def show(card: Path, track: Track) -> Shown:
    pipeline = DiffusionPipeline.from_pretrained(card)
    pipeline.set_progress_bar_config(disable=True)
    digits = list(range(10))
    drawn = np.concatenate(
        [sample(pipeline, digits, seed) for seed in track(range(PER_DIGIT), "PixArt-δ: drawing in 4 steps")]
    )
    sheet = Image.new("L", (10 * 64, 3 * 64))
    for row in range(3):
        for column, picture in enumerate(draw(pipeline, digits, seed=row)):
            sheet.paste(picture.convert("L"), (64 * column, 64 * row))
    return Shown(
        task="text-to-image",
        metric=f"recognised, {10 * PER_DIGIT} drawn digits",
        baseline="0.10 (chance)",
        ours=f"{recognised(drawn, digits * PER_DIGIT):.2f}",
        pictures=[
            Picture(
                sheet,
                '"the digit zero" to "the digit nine", three seeds, four LCM steps each. A classifier of real digits judges',
            )
        ],
    )
