"""Pictures from files, one by one or with their classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_ext.files import existing_file

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def read_picture(path: str | Path) -> Any:
    """A PIL image in RGB; a ValueError that names the file where there is none to read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(existing_file(path)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise ValueError(f"'{path}' is not a picture that can be read") from None


def read_classified(path: str | Path, config: Any, limit: int | None = None) -> tuple[list[Any], list[int]]:
    """Pictures (PIL, RGB) and their classes, for a classifier with this configuration.

    Args:
        path: a folder with a folder of pictures for each class, named as the model names it or by its number; or an .npz with `images`,
            (N, height, width[, 1 or 3]) from 0 to 255 or floating-point in [0, 1], and `labels` (N).
        limit: how many at most; of a folder, the classes take turns.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    images, labels = _npz(path, limit) if Path(path).suffix == ".npz" else _folder(Path(path), config, limit)
    if not images:
        raise ValueError(f"'{path}' holds no pictures")
    if not all(0 <= label < config.num_labels for label in labels):
        raise ValueError(f"Labels must be classes from 0 to {config.num_labels - 1}, not {sorted(set(labels))}")
    return images, labels


def _npz(path: str | Path, limit: int | None) -> tuple[list[Any], list[int]]:
    import numpy as np
    from PIL import Image

    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read as .npz: {error}") from None
    if not {"images", "labels"} <= set(arrays):
        raise ValueError(f"'{path}' must hold `images` and `labels`; it holds {', '.join(arrays) or 'nothing'}")
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or len(images) != len(labels):
        raise ValueError(
            f"`images` must be (N, height, width) or (N, height, width, 1 or 3) and `labels` (N), not {images.shape} and {labels.shape}"
        )
    images, labels = images[:limit], labels[:limit]
    if np.issubdtype(images.dtype, np.floating):
        if not (images.min(initial=0) >= 0 and images.max(initial=0) <= 1):  # also false for NaN
            raise ValueError("`images` of floating-point numbers must lie in [0, 1]; whole numbers go from 0 to 255")
        images = (images * 255).round()
    images = images.astype(np.uint8)
    images = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
    return [Image.fromarray(image).convert("RGB") for image in images], labels.astype(int).tolist()


def _folder(folder: Path, config: Any, limit: int | None) -> tuple[list[Any], list[int]]:
    if not folder.is_dir():
        raise ValueError(f"There is no folder or .npz file '{folder}'")
    found = sorted(_paths(folder, config))[:limit]
    return [read_picture(path) for _, _, path in found], [number for _, number, _ in found]


def _paths(folder: Path, config: Any) -> Iterator[tuple[int, int, Path]]:
    """(place within its class, class, path)"""
    names = {str(name): int(number) for number, name in (config.id2label or {}).items()}
    numbers = {str(number): number for number in range(config.num_labels)} | names
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if inner.name not in numbers:
            raise ValueError(
                f"'{inner.name}' in '{folder}' is no label of the model, such as {', '.join(list(numbers)[-3:])}"
            )
        paths = sorted(path for path in inner.iterdir() if path.suffix.lower() in SUFFIXES)
        yield from ((place, numbers[inner.name], path) for place, path in enumerate(paths))
