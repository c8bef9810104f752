"""BCT against the same model in float32 and in bitsandbytes' 8 bits: memory to have a model loaded and run once, latency, decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from hf_ext.measuring import peak_memory
from hf_ext.quantizers import BCTConfig, quantize_model

from . import Contest
from .llm_drop import NEW_TOKENS, decoder

TOKENS = 128


@dataclass(frozen=True)
class Loading:
    """Loads a classifier and runs it once."""

    folder: Path

    def __call__(self) -> None:
        run(AutoModelForSequenceClassification.from_pretrained(self.folder))()


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """BERT-base with random weights (the paper's setting: 4-bit matrices, 8-bit vectors, blocks of 64) and a Llama of 111M parameters."""
    torch.manual_seed(0)
    dense = BertForSequenceClassification(BertConfig()).eval()
    with TemporaryDirectory() as folder:
        folders = {name: Path(folder) / name for name in ("float32", "bct_int4_8", "bct_int8", "8-bit")}
        dense.save_pretrained(folders["float32"])
        for name in BCTConfig.PRESETS:
            quantize_model(dense, BCTConfig.from_preset(name)).save_pretrained(folders[name])
            yield Contest(
                f"BERT-base, load and run once, {name}",
                Loading(folders[name]),
                Loading(folders["float32"]),
                "float32",
                threads=1,
                memory=peak_of_process,
            )
        yield from latency(dense, folders)
    del dense
    yield decoding()


def latency(dense: PreTrainedModel, folders: dict[str, Path]) -> Iterator[Contest]:
    name = f"BERT-base, {{}} x {TOKENS} tokens, bct_int4_8"
    ours = quantize_model(dense, BCTConfig())
    for batch in (1, 4):
        yield Contest(name.format(batch), run(ours, batch), run(dense, batch), "float32", threads=1)
    if find_spec("bitsandbytes"):
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier"])
        peer = BertForSequenceClassification.from_pretrained(
            folders["float32"], quantization_config=config, device_map="cpu"
        )
        yield Contest(name.format(1), run(ours), run(peer), "bitsandbytes LLM.int8()", threads=1)


def decoding() -> Contest:
    config = LlamaConfig(
        vocab_size=2048, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16
    )
    torch.manual_seed(0)
    dense = LlamaForCausalLM(config).eval()
    ours = quantize_model(dense, BCTConfig())
    name = f"Llama, decode {NEW_TOKENS} tokens after {TOKENS}, bct_int4_8"
    return Contest(name, decoder(ours, TOKENS), decoder(dense, TOKENS), "float32", threads=1)


def run(model: PreTrainedModel, batch: int = 1) -> Callable[[], None]:
    ids = torch.arange(batch * TOKENS).view(batch, TOKENS)

    @torch.inference_mode()
    def forward() -> None:
        model(ids)

    return forward


def peak_of_process(side: Loading) -> float:
    """In MiB, in a process of its own; weights that are mapped from the file count when they are read."""
    return peak_memory(side.folder, {"input_ids": torch.arange(TOKENS)[None]}) / 2**20
