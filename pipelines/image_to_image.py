"""`pipeline("image-to-image")`: super-resolution and restoration, for HAT, upstream's Swin2SR and whatever returns a `reconstruction`."""

from __future__ import annotations

from collections import defaultdict
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image
from transformers.pipelines.base import Pipeline

from .tiling import tiled

ImageSource = str | PathLike | Image.Image | np.ndarray

MAX_PIXELS_WHOLE = 384 * 384
TILE_SIZE = 256
TILE_OVERLAP = 64


class ImageToImagePipeline(Pipeline):
    """Images in, images out.

    ```python
    upscale = pipeline("image-to-image", "folder/or/repository")
    image = upscale("photograph.png")
    images = upscale(["one.png", Image.open("two.jpg"), array], batch_size=2)
    ```

    An image is a path, a URL, a PIL image or an array, (H, W) or (H, W, 1 | 3 | 4), with integers from 0 to 255 or floats from 0 to
    1. Gray images become RGB, transparency is composited onto white. The result is a PIL image for each.

    Args (of the constructor or of a call):
        tile_size: edge of the tiles, in input pixels, that a large image is cut into. By default images of more than 384 x 384
            pixels are cut into tiles of 256; 0 runs any image as a whole.
        tile_overlap: how much neighbouring tiles share, in input pixels; by default 64, and at most half of `tile_size`.
        timeout: seconds to wait for a URL.

    Raises:
        ValueError: a source that is no image or cannot be reached, or an impossible `tile_size` or `tile_overlap`.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(self, inputs: ImageSource | list[ImageSource], **kwargs: Any) -> Image.Image | list[Image.Image]:
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self, timeout: float | None = None, tile_size: int | None = None, tile_overlap: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = {"tile_size": tile_size, "tile_overlap": tile_overlap}
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {name: value for name, value in forward.items() if value is not None}, {}

    def preprocess(self, inputs: ImageSource, timeout: float | None = None) -> dict[str, Any]:
        image = read_image(inputs, timeout)
        if getattr(self.model.config, "num_channels", 3) == 1:
            image = image.convert("L")
        pixel_values = self.image_processor(images=image, return_tensors="pt").pixel_values.to(self.dtype)
        # In lists, because images of one batch may differ in size.
        return {"images": [pixel_values], "sizes": [(image.height, image.width)]}

    def _forward(
        self, model_inputs: dict[str, Any], tile_size: int | None = None, tile_overlap: int | None = None
    ) -> dict[str, Any]:
        images, sizes = model_inputs["images"], model_inputs["sizes"]
        if isinstance(images[0], list):  # a batch: one list for each image
            images, sizes = ([x for (x,) in entries] for entries in (images, sizes))
        same_shape = defaultdict(list)
        for index, image in enumerate(images):
            same_shape[image.shape].append(index)
        reconstructions: list[Any] = [None] * len(images)
        for indices in same_shape.values():
            batch = torch.cat([images[index] for index in indices])
            output = self.restore(batch, tile_size, tile_overlap)
            scale = output.shape[-1] // batch.shape[-1]
            for index, reconstruction in zip(indices, output):  # an image processor may have padded the image
                height, width = sizes[index]
                reconstructions[index] = reconstruction[:, : height * scale, : width * scale]
        return {"reconstructions": reconstructions}

    def restore(self, images: torch.Tensor, tile_size: int | None, tile_overlap: int | None) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', H * scale, W * scale)"""
        height, width = images.shape[2:]
        if tile_size is None:
            tile_size = TILE_SIZE if height * width > MAX_PIXELS_WHOLE else 0
        if tile_size == 0:
            return self.model(pixel_values=images).reconstruction
        multiple = getattr(self.model.config, "window_size", 1)
        if tile_overlap is None:
            tile_overlap = min(TILE_OVERLAP, tile_size // 2 // multiple * multiple)
        return tiled(
            lambda tile: self.model(pixel_values=tile).reconstruction, images, tile_size, tile_overlap, multiple
        )

    def postprocess(self, model_outputs: dict[str, Any]) -> Image.Image:
        pixels = model_outputs["reconstructions"][0].float().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


def read_image(source: ImageSource, timeout: float | None = None) -> Image.Image:
    """Any `ImageSource` as an upright RGB image; a `ValueError` that says what was wrong with it otherwise."""
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    elif isinstance(source, (str, PathLike)):
        try:
            source = _open(str(source), timeout)
        except Exception as error:  # unreachable, not found, not an image, cut off: many types
            raise ValueError(f"'{source}' cannot be read as an image: {error}") from None
    elif not isinstance(source, Image.Image):
        raise ValueError(f"An image is a path, a URL, a PIL image or an array, not a {type(source).__name__}")
    return Image.fromarray(convert_to_rgb(ImageOps.exif_transpose(source), return_numpy=True))


def _open(source: str, timeout: float | None) -> Image.Image:
    if source.startswith(("http://", "https://", "data:")):
        return load_image(source, timeout)
    with Image.open(source) as image:
        image.load()
        return image


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise ValueError(f"An image array must have the shape (H, W) or (H, W, 1 | 3 | 4), not {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError("An image array of floats must lie in [0, 1], without NaN")
        array = (array * 255).round()
    elif array.min() < 0 or array.max() > 255:
        raise ValueError(f"An image array of integers must lie in [0, 255], not [{array.min()}, {array.max()}]")
    array = array.astype(np.uint8)
    return Image.fromarray(array[..., 0] if channels == 1 and array.ndim == 3 else array)
