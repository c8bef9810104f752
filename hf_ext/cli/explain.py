"""`hf-ext run ... --explain FILE`: where on the picture an image classifier looks.

Where the model has softmax attention over the whole picture, the map is that attention. With a class token it is followed through the
layers (attention rollout, arXiv 2005.00928); without one, it is how much the last layer's positions attend to each place. Where attention
stays within windows, or there is none, the map is the Euclidean norm of the last features at each place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils._pytree import tree_leaves

# from where nothing is to where most is, as red, green, blue
COLOURS = ((0, 0, 96), (0, 160, 255), (255, 230, 0), (255, 0, 0))
STRENGTH = 0.55


@torch.no_grad()
def explain(model: Any, processor: Any, image: Image.Image) -> Image.Image:
    """The picture as the model sees it (resized, cropped), with its map over it.

    Args:
        model: an image classifier in eval mode. It computes attention with "eager" afterwards, which can be returned.
        processor: its image processor.

    Raises:
        ValueError: the model returns neither attention nor features that belong to places.
    """
    pixels = processor(image, return_tensors="pt")["pixel_values"].to(model.device)
    model.set_attn_implementation("eager")
    output = model(pixels.to(model.dtype), output_attentions=True, output_hidden_states=True)
    heat = heat_map(output, tuple(pixels.shape[-2:]))
    return overlay(picture(pixels[0].float().cpu(), processor), heat.float().cpu())


def heat_map(output: Any, size: tuple[int, int]) -> torch.Tensor:
    """(rows, columns), from what a model returned for one image of `size` (height, width)."""
    heat = attention_map(tree_leaves(output.get("attentions")), size)
    if heat is None:
        heat = feature_map(tree_leaves([output.get("hidden_states"), output.get("last_hidden_state")]), size)
    if heat is None:
        raise ValueError("There is nothing to show: the model returns neither attention nor features of places")
    return heat


def attention_map(attentions: Iterable[Any], size: tuple[int, int]) -> torch.Tensor | None:
    """(rows, columns), or None where no attention spans the picture. Attentions are (1, heads, queries, keys)."""
    layers = [a.squeeze(1) if a.ndim == 5 else a for a in attentions if isinstance(a, torch.Tensor)]
    layers = [a[0].mean(0) for a in layers if a.ndim == 4 and len(a) == 1 and grid(a.shape[-1], size)]
    if not layers:
        return None
    rolled = [a for a in layers if a.shape[0] == a.shape[1] and grid(a.shape[-1], size)[0]]
    if rolled:
        finest = max(a.shape[-1] for a in rolled)
        received = rollout([a for a in rolled if a.shape[-1] == finest])[0]
    else:
        received = layers[-1].mean(0)
    extra, rows, columns = grid(len(received), size)
    return received[extra:].view(rows, columns)


def rollout(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """(tokens, tokens): how much of each token reaches each other one through all layers and the shortcuts around them."""
    total = torch.eye(len(layers[0]), dtype=layers[0].dtype, device=layers[0].device)
    for attention in layers:
        total = (attention + torch.eye(len(attention), dtype=total.dtype, device=total.device)) / 2 @ total
    return total


def feature_map(features: Iterable[Any], size: tuple[int, int]) -> torch.Tensor | None:
    """(rows, columns): the norm of the last map (1, C, rows, columns) or tokens (1, N, C) among `features`."""
    for tensor in reversed([f for f in features if isinstance(f, torch.Tensor)]):
        if tensor.ndim == 4:
            return tensor[0].norm(dim=0)
        if tensor.ndim == 3 and (found := grid(tensor.shape[1], size)):
            extra, rows, columns = found
            return tensor[0, extra:].norm(dim=-1).view(rows, columns)
    return None


def grid(tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """(tokens before the places, rows, columns) if `tokens` can be a grid of the picture's shape after up to two others."""
    for extra in range(3):
        rows = round(math.sqrt(max(tokens - extra, 0) * size[0] / size[1]))
        if rows > 1 and (tokens - extra) % rows == 0 and abs((tokens - extra) // rows - rows * size[1] / size[0]) < 1:
            return extra, rows, (tokens - extra) // rows
    return None


def picture(pixels: torch.Tensor, processor: Any) -> np.ndarray:
    """(height, width, 3) in [0, 1], from normalised pixels (C, height, width)."""
    if getattr(processor, "do_normalize", False):
        mean, deviation = (torch.as_tensor(v).view(-1, 1, 1) for v in (processor.image_mean, processor.image_std))
        pixels = pixels * deviation + mean
    if len(pixels) != 3:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    return pixels.clamp(0, 1).permute(1, 2, 0).numpy()


def overlay(base: np.ndarray, heat: torch.Tensor) -> Image.Image:
    """The picture with the map, scaled from its least to its largest value, in colours over it."""
    spread = heat.max() - heat.min()
    scaled = (heat - heat.min()) / spread if spread > 0 else torch.zeros_like(heat)
    smooth = torch.nn.functional.interpolate(scaled[None, None], base.shape[:2], mode="bicubic", align_corners=False)
    level = smooth[0, 0].clamp(0, 1).numpy()
    stops = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(level, stops, channel) for channel in zip(*COLOURS)], -1)
    return Image.fromarray(((1 - STRENGTH) * 255 * base + STRENGTH * colour).round().astype(np.uint8))
