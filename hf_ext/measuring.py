"""What a model costs and how good it is: parameters, bytes on disk, peak memory, speed, perplexity or accuracy. And data files for it.

Works on any folder or repository that an Auto class loads: language models, text classifiers and image classifiers.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import gc
import json
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

TASKS = {  # Auto class -> what the model does
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForImageClassification": "image-classification",
}
PREFERRED = tuple(TASKS)
LENGTH = 128  # tokens of a window of running text
PROMPT, NEW_TOKENS = 64, 32

Batches = list[dict[str, torch.Tensor]]


@dataclass
class Loaded:
    """A model in eval mode, what goes before it (tokenizer or image processor, or None), and its task ("" where it is none of `TASKS`)."""

    model: Any
    processor: Any
    task: str


def load(source: str | Path) -> Loaded:
    """The model that a folder or repository holds, by the Auto class that its config.json names.

    Raises:
        ValueError: no Auto class makes what config.json names.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    auto = auto_class(config)
    model = auto.from_pretrained(source).eval()
    task = TASKS.get(auto.__name__, "")
    return Loaded(model, _processor(source, task), task)


def auto_class(config: Any) -> Any:
    """The Auto class whose model `config.architectures` names; the first that knows the configuration where it names none."""
    from transformers.models.auto import modeling_auto

    named = (config.architectures or [None])[0]
    others = [name for name in vars(modeling_auto) if name.startswith("AutoModel") and name not in PREFERRED]
    for name in (*PREFERRED, *others):
        auto = getattr(modeling_auto, name)
        mapping = getattr(auto, "_model_mapping", None)
        if mapping is not None and type(config) in mapping:
            made = mapping[type(config)]
            made = made if isinstance(made, tuple) else (made,)
            if named is None or named in {model.__name__ for model in made}:
                return auto
    raise ValueError(f"No Auto class of Transformers makes a {named or type(config).__name__}")


def _processor(source: str | Path, task: str) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer

    kind = {"image-classification": AutoImageProcessor, "": None}.get(task, AutoTokenizer)
    folder = Path(source)
    if kind is None or (kind is AutoTokenizer and folder.is_dir() and not any(folder.glob("tokenizer*"))):
        return None  # Transformers would make a tokenizer without words
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError):  # a folder without one
        return None


def read_batches(path: str | Path, loaded: Loaded, batch_size: int = 8, limit: int | None = None) -> Batches:
    """Batches with labels from a data file: for calibration, fine-tuning and evaluation.

    Args:
        path: for language models a text file; for text classifiers a .csv or .jsonl with `text` and `label`; for image classifiers a
            folder with a folder of pictures for each class, or an .npz, as `hf_ext.data.pictures.read_classified` takes them.
        limit: how many items, or windows of text, at most.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    path = Path(path)
    if loaded.task == "":
        raise ValueError(
            f"Data files are read for {', '.join(TASKS.values())}, not for a {type(loaded.model).__name__}"
        )
    if not path.exists():
        raise ValueError(f"There is no '{path}'")
    if loaded.processor is None:
        what = "image processor" if loaded.task == "image-classification" else "tokenizer"
        raise ValueError(f"The model comes without {what}, so '{path}' cannot be prepared for it")
    readers = {
        "text-generation": _text,
        "text-classification": _labelled_text,
        "image-classification": _labelled_images,
    }
    batches = readers[loaded.task](path, loaded, batch_size, limit)
    if not batches:
        raise ValueError(f"'{path}' holds no data")
    return batches


def _text(path: Path, loaded: Loaded, batch_size: int, limit: int | None) -> Batches:
    from .data.text import windows

    content = _read_text(path)
    length = min(LENGTH, getattr(loaded.model.config, "max_position_embeddings", LENGTH))
    rows = windows(content, length, loaded.processor)[:limit]
    if not len(rows):
        raise ValueError(f"'{path}' is shorter than one window of {length} tokens")
    return [
        {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part} for part in rows.split(batch_size)
    ]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, IsADirectoryError):
        raise ValueError(f"'{path}' is not a text file") from None


def _labelled_text(path: Path, loaded: Loaded, batch_size: int, limit: int | None) -> Batches:
    content = _read_text(path)
    if path.suffix == ".csv":
        rows = list(csv.DictReader(content.splitlines()))
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    else:
        raise ValueError(f"Text with labels is a .csv or .jsonl with the columns text and label, not '{path}'")
    if any(not isinstance(row, dict) or "text" not in row or "label" not in row for row in rows):
        raise ValueError(f"'{path}' has rows without the columns text and label")
    rows = rows[:limit]
    batches = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        encoded = loaded.processor([row["text"] for row in part], padding=True, truncation=True, return_tensors="pt")
        labels = [_label(row["label"], loaded.model.config, path) for row in part]
        batches.append(dict(encoded) | {"labels": torch.tensor(labels)})
    return batches


def _label(value: Any, config: Any, path: Path) -> int:
    names = {name: number for number, name in (config.id2label or {}).items()}
    if value in names:
        return names[value]
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < config.num_labels:
        raise ValueError(f"'{path}' has the label '{value}'; the model knows {list(names)[:20]} and their numbers")
    return number


def _labelled_images(path: Path, loaded: Loaded, batch_size: int, limit: int | None) -> Batches:
    from .data.pictures import read_classified

    images, labels = read_classified(path, loaded.model.config, limit)
    batches = []
    for start in range(0, len(images), batch_size):
        pixels = loaded.processor(images[start : start + batch_size], return_tensors="pt")["pixel_values"]
        batches.append({"pixel_values": pixels, "labels": torch.tensor(labels[start : start + batch_size])})
    return batches


def sample_batch(loaded: Loaded, batch_size: int = 8) -> dict[str, torch.Tensor]:
    """A batch of random inputs of the right form, to measure speed and memory where there is no data."""
    config = loaded.model.config
    generator = torch.Generator().manual_seed(0)
    if loaded.task == "image-classification":
        size = config.image_size if hasattr(config, "image_size") else 224
        height, width = (size, size) if isinstance(size, int) else size
        channels = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.randn(batch_size, channels, height, width, generator=generator)}
    length = min(LENGTH, getattr(config, "max_position_embeddings", LENGTH))
    ids = torch.randint(3, config.vocab_size, (batch_size, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def quality(loaded: Loaded, batches: Iterable[Mapping[str, torch.Tensor]]) -> tuple[str, float]:
    """("perplexity", per token) of a language model, ("accuracy", share from 0 to 1) of a classifier."""
    model = loaded.model
    loss = right = count = 0.0
    for batch in tqdm(batches, desc="evaluate", leave=False):
        batch = {name: value.to(model.device) for name, value in batch.items()}
        output = model(**batch)
        if loaded.task == "text-generation":
            tokens = batch["labels"][:, 1:].numel()
            loss, count = loss + output.loss.item() * tokens, count + tokens
        else:
            right, count = (
                right + (output.logits.argmax(-1) == batch["labels"]).sum().item(),
                count + len(output.logits),
            )
    return ("perplexity", math.exp(loss / count)) if loaded.task == "text-generation" else ("accuracy", right / count)


def work_of(loaded: Loaded, batch: Mapping[str, torch.Tensor]) -> tuple[Any, float, str]:
    """(a call to time, how many units it makes, their name): decoding for language models, one batch for the others."""
    model = loaded.model
    batch = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
    if loaded.task == "text-generation":
        longest = getattr(model.config, "max_position_embeddings", None) or PROMPT + NEW_TOKENS
        prompt = batch["input_ids"][:1, : max(1, min(PROMPT, longest - NEW_TOKENS))]
        options = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
        mask = torch.ones_like(prompt)
        return lambda: model.generate(prompt, attention_mask=mask, **options), NEW_TOKENS, "tokens/s"

    def forward() -> None:
        with torch.inference_mode():
            model(**batch)

    items = len(next(iter(batch.values())))
    return forward, items, "images/s" if loaded.task == "image-classification" else "texts/s"


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def bytes_on_disk(model: Any) -> int:
    """Of the weights, as `save_pretrained` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def peak_memory(source: str | Path, batch: Mapping[str, torch.Tensor]) -> int:
    """Bytes by which a process of its own grows at most while it loads the model and runs one batch, for the second time: libraries that
    are loaded on the way do not count, nor what the allocator kept of the first time (a few MiB)."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arrays = {name: value.cpu().numpy() for name, value in batch.items() if name != "labels"}
    child = context.Process(target=_load_and_run, args=(str(source), arrays, queue), daemon=True)
    child.start()
    while True:
        try:
            result = queue.get(timeout=1)
            break
        except Exception:
            if not child.is_alive():
                raise RuntimeError(f"The process that measures '{source}' ended with {child.exitcode}") from None
    child.join()
    if isinstance(result, str):
        raise RuntimeError(f"'{source}' could not be measured: {result}")
    return result


def _load_and_run(source: str, arrays: Mapping[str, Any], queue: Any) -> None:
    try:
        import hf_ext  # noqa: F401 - registers what the folder may name

        torch.set_num_threads(1)
        from transformers import AutoConfig

        auto = auto_class(AutoConfig.from_pretrained(source))

        def work() -> None:
            model = auto.from_pretrained(source).eval()
            with torch.inference_mode():
                model(**{name: torch.from_numpy(value) for name, value in arrays.items()})

        work()  # code that is loaded on the way, tens of MiB, does not count
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # not on Linux
            ctypes.CDLL(None).malloc_trim(0)
        before = _start_peak()
        work()
        queue.put(_peak() - before)
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


def _start_peak() -> int:
    """Bytes that the process holds now. On Linux the peak is counted anew from here; elsewhere only growth beyond the old one is seen."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Effect:
    """One measure of a model before and after a change."""

    measure: str
    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else math.nan


def effects(
    before: Loaded,
    after: Loaded,
    evaluation: Sequence[Mapping[str, torch.Tensor]] | None = None,
    sources: tuple[str | Path, str | Path] | None = None,
    rounds: int = 5,
) -> list[Effect]:
    """Both models side by side: parameters, disk, peak memory, speed by alternating runs, and quality where there is data.

    Args:
        evaluation: batches with labels.
        sources: the folders of both, for the memory that loading takes; left out without.
        rounds: alternating runs of each for the speed.
    """
    from .benchmarks import Contest, compare

    batch = evaluation[0] if evaluation else sample_batch(before)
    found = [
        Effect("parameters", parameters(before.model), parameters(after.model)),
        Effect("bytes on disk", bytes_on_disk(before.model), bytes_on_disk(after.model)),
    ]
    if sources:
        found.append(Effect("peak memory, bytes", *(peak_memory(source, batch) for source in sources)))
    if before.task:
        (theirs, units, name), (ours, *_) = work_of(before, batch), work_of(after, batch)
        result = compare(Contest(name, ours, theirs, "before"), rounds=rounds)
        found.append(Effect(name, units / result.peer_seconds, units / result.ours_seconds))
    if evaluation:
        name, value = quality(before, evaluation)
        found.append(Effect(name, value, quality(after, evaluation)[1]))
    return found
