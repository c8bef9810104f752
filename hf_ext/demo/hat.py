"""HAT doubles a photograph that it was not trained on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from transformers import pipeline

from hf_ext.data.photos import HELD_OUT, degrade, photograph, psnr_y

from . import Picture, Shown, Track

SCALE = 2
DETAIL = (300, 130, 460, 250)  # left, top, right, bottom of the part shown enlarged


def show(card: Path, track: Track) -> Shown:
    low, high = degrade(photograph(HELD_OUT), SCALE)
    upscale = pipeline("image-to-image", str(card))
    (ours,) = (upscale(image) for image in track([low], "HAT: doubling a photograph"))
    bicubic = low.resize(high.size, Image.Resampling.BICUBIC)
    before, after = (psnr_y(image, high, border=SCALE) for image in (bicubic, ours))
    return Shown(
        task="image-to-image",
        metric="PSNR-Y in dB, held-out photograph",
        baseline=f"{before:.2f} (bicubic)",
        ours=f"{after:.2f}",
        pictures=[
            Picture(ours, f"Doubled from {low.width}x{low.height}: {after:.2f} dB", 420),
            *(
                Picture(_detail(image), name, 320)
                for image, name in ((bicubic, "Bicubic"), (ours, "HAT"), (high, "Original"))
            ),
        ],
    )


def _detail(image: Image.Image) -> Image.Image:
    part = image.crop(DETAIL)
    return part.resize((part.width * 4, part.height * 4), Image.Resampling.NEAREST)
