"""CrossViT reads handwritten digits that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from transformers import pipeline

from hf_ext.data.digits import handwritten_digits

from . import Picture, Shown, Track

BATCH = 40
CELL, COLUMNS, SHOWN = 48, 10, 40


def show(card: Path, track: Track) -> Shown:
    (seen, seen_labels), (images, labels) = handwritten_digits()
    classify = pipeline("image-classification", str(card), batch_size=BATCH)
    predicted = [
        int(classes[0]["label"])
        for start in track(range(0, len(images), BATCH), "CrossViT: reading digits")
        for classes in classify(images[start : start + BATCH], top_k=1)
    ]
    accuracy = np.mean(np.equal(predicted, labels))
    return Shown(
        task="image-classification",
        metric=f"accuracy, {len(labels)} held-out digits",
        baseline=f"{np.mean(np.equal(nearest_mean(seen, seen_labels, images), labels)):.3f} (nearest mean)",
        ours=f"{accuracy:.3f}",
        pictures=[Picture(sheet(images, predicted, labels), "Held-out digits and what they were read as")],
    )


def nearest_mean(seen: list[Image.Image], labels: list[int], images: list[Image.Image]) -> np.ndarray:
    """The class whose mean image is nearest."""
    seen, images = (np.array([np.asarray(image, float).ravel() for image in part]) for part in (seen, images))
    means = np.array([seen[np.equal(labels, digit)].mean(0) for digit in range(10)])
    return np.square(images[:, None] - means).sum(-1).argmin(-1)


def sheet(images: list[Image.Image], predicted: list[int], labels: list[int]) -> Image.Image:
    rows = -(-SHOWN // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + 14)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (image, guess, truth) in enumerate(list(zip(images, predicted, labels))[:SHOWN]):
        x, y = index % COLUMNS * CELL, index // COLUMNS * (CELL + 14)
        canvas.paste(image.resize((CELL - 4, CELL - 4), Image.Resampling.NEAREST), (x + 2, y))
        draw.text((x + CELL // 2 - 3, y + CELL - 4), str(guess), fill="black" if guess == truth else "red")
    return canvas
