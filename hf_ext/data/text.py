"""English text that scikit-learn ships: the descriptions of its data sets (about 60 kB)."""

from __future__ import annotations

import math
from importlib.resources import files

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


@torch.no_grad()
def byte_perplexity(model: PreTrainedModel, rows: torch.Tensor) -> float:
    """exp of a language model's mean next-token loss over `rows` of token ids (number of windows, length)."""
    losses = [model(input_ids=batch, labels=batch).loss * len(batch) for batch in rows.split(8)]
    return math.exp(sum(losses).item() / len(rows))
