"""Text that dependencies ship: scikit-learn's descriptions of its data sets (about 60 kB), and the source code of packages."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import ByT5Tokenizer, PreTrainedModel, PreTrainedTokenizerBase


def sklearn_descriptions(validation_share: float = 0.1) -> tuple[str, str]:
    """(training text, validation text): the descriptions in the order of their names, the last part held out."""
    folder = files("sklearn.datasets.descr")
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".rst")), key=lambda path: path.name)
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    border = int(len(text) * (1 - validation_share))
    return text[:border], text[border:]


def windows(text: str, length: int, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """(number of windows, length): the text's tokens cut into windows that do not overlap; the remainder is left out."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids[: len(ids) // length * length].view(-1, length)


def source_windows(
    packages: Sequence[str], length: int, per_package: int, held_out: bool = False, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whose code is it? Windows of bytes + 1 (0 stays free for padding) from the Python files of installed packages, and their package.

    Args:
        packages: names of packages; their places are the classes.
        length: bytes of a window.
        per_package: windows of each package.
        held_out: take them from every fifth file instead of the other four, so that no file is in both.

    Returns:
        (packages * per_package, length) integers 1 to 256, and (packages * per_package,) classes, shuffled.

    Raises:
        ValueError: a package that has too little code.
    """
    generator = random.Random(seed)
    rows, classes = [], []
    for number, package in enumerate(packages):
        folder = Path(find_spec(package).origin).parent
        paths = [path for index, path in enumerate(sorted(folder.rglob("*.py"))) if (index % 5 == 0) == held_out]
        content = [
            text for path in generator.sample(paths, min(len(paths), 200)) if len(text := path.read_bytes()) >= length
        ]
        if not content:
            raise ValueError(f"No Python file of '{package}' has {length} bytes")
        for _ in range(per_package):
            text = generator.choice(content)
            start = generator.randint(0, len(text) - length)
            rows.append(torch.frombuffer(bytearray(text[start : start + length]), dtype=torch.uint8).long() + 1)
            classes.append(number)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return torch.stack(rows)[order], torch.tensor(classes)[order]


class ByteText(NamedTuple):
    """Token ids of a text in rows of equal length. The validation rows pick a checkpoint, the test rows are looked at once, at the end."""

    tokenizer: ByT5Tokenizer
    size: int  # bytes of the training part
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor


def byte_text(length: int, stride: int = 16) -> ByteText:
    """`sklearn_descriptions` byte by byte; training rows overlap, so that every byte is seen at many positions."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    text, held_out = sklearn_descriptions()
    border = int(0.9 * len(text))
    ids = torch.tensor(tokenizer(text[:border], add_special_tokens=False)["input_ids"])
    validation, test = (windows(part, length, tokenizer) for part in (text[border:], held_out))
    return ByteText(tokenizer, len(ids), ids.unfold(0, length, stride), validation, test)


@torch.no_grad()
def byte_perplexity(model: PreTrainedModel, rows: torch.Tensor) -> float:
    """exp of a language model's mean next-token loss over `rows` of token ids (number of windows, length)."""
    losses = [model(input_ids=batch, labels=batch).loss * len(batch) for batch in rows.split(8)]
    return math.exp(sum(losses).item() / len(rows))
