"""LLM-Drop on a small byte-level Llama: how much perplexity each kind of module costs when it goes, and what memory it frees."""

from __future__ import annotations

import random

import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from hf_ext.data.text import byte_perplexity, sklearn_descriptions, windows
from hf_ext.files import atomic_folder, replaced_files
from hf_ext.surgery import LlmDrop, apply
from hf_ext.surgery.llm_drop import Similarities, choose, compute_similarities

from . import Experiment, MissingData, Row, Run

CONTEXT = 128
LAYERS = 8


def train_llama(run: Run) -> list[Row]:
    """Trains the small Llama of the card on the text that ships with scikit-learn, and saves it there."""
    from .training import TensorDataset, train

    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer(extra_ids=0)
    text, held_out = sklearn_descriptions()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=2048,
            attention_dropout=0.2,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    border = int(0.9 * len(text))  # the rest picks the checkpoint; the held-out text is looked at once, at the end
    ids = torch.tensor(tokenizer(text[:border], add_special_tokens=False)["input_ids"])
    rows = ids.unfold(0, CONTEXT, 16)  # overlapping windows: every byte is seen at many positions
    validation = windows(text[border:], CONTEXT, tokenizer)
    train(
        run,
        model,
        TensorDataset(input_ids=rows, labels=rows),
        TensorDataset(input_ids=validation, labels=validation),
        max_steps=int(run.options["steps"]),
        save_steps=50,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=40,
        weight_decay=0.5,
        max_grad_norm=1.0,
    )
    half = apply(model, choose(calibrate(model, text, tokenizer), LAYERS // 2))
    with atomic_folder(run.card / "dense") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    with replaced_files(run.card) as folder:
        half.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    validation = windows(held_out, CONTEXT, tokenizer)
    return [
        Row("held-out perplexity per byte, dense", byte_perplexity(model, validation)),
        Row(
            f"held-out perplexity per byte, {LAYERS // 2} of {LAYERS} attentions dropped",
            byte_perplexity(half, validation),
            dataset="scikit-learn descriptions",
            metric_type="perplexity",
        ),
    ]


def calibrate(model: AutoModelForCausalLM, text: str, tokenizer: ByT5Tokenizer) -> Similarities:
    """Similarities over 64 windows of the training text."""
    return compute_similarities(model, windows(text, CONTEXT, tokenizer)[:64].split(16))


def load_llama(run: Run) -> tuple[AutoModelForCausalLM, ByT5Tokenizer]:
    folder = run.card / "dense"
    if not (folder / "model.safetensors").is_file():
        raise MissingData("The small Llama is not trained yet: run `hf-ext reproduce llm_drop --experiment demo` first")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), ByT5Tokenizer.from_pretrained(folder)


def measure_drops(run: Run) -> list[Row]:
    """Perplexity after 1 to 4 attentions, MLPs or blocks go, chosen by similarity and at random (three seeds)."""
    model, tokenizer = load_llama(run)
    text, held_out = sklearn_descriptions()
    validation = windows(held_out, CONTEXT, tokenizer)
    similarities = calibrate(model, text, tokenizer)
    rows = [Row("perplexity, dense", byte_perplexity(model, validation))]
    for target in ("attention", "mlp", "block"):
        for n in range(1, 5):
            chosen = byte_perplexity(apply(model, choose(similarities, n, target)), validation)
            by_chance = [byte_perplexity(apply(model, _random(n, target, seed)), validation) for seed in range(3)]
            note = f"random choice: {sum(by_chance) / 3:.2f} (mean of 3)"
            rows.append(Row(f"perplexity, {n} of {LAYERS} {target}s dropped", chosen, note=note))
    half = apply(model, choose(similarities, LAYERS // 2))
    rows.append(
        Row("cache memory, half of the attentions dropped", _cache_bytes(half) / _cache_bytes(model), paper="0.5")
    )
    return rows


def _random(n: int, target: str, seed: int) -> LlmDrop:
    picked = random.Random(seed).sample(range(LAYERS), n)
    return LlmDrop(attention=picked if target != "mlp" else [], mlp=picked if target != "attention" else [])


@torch.no_grad()
def _cache_bytes(model: AutoModelForCausalLM) -> int:
    cache = DynamicCache(config=model.config)
    model(torch.full((1, CONTEXT), 5), past_key_values=cache)
    return sum(
        x.numel() * x.element_size()
        for layer in cache.layers
        if layer.is_initialized
        for x in (layer.keys, layer.values)
    )


EXPERIMENTS = {
    "drop": Experiment("Perplexity against what is dropped", measure_drops, minutes=1),
    "demo": Experiment(
        "The small Llama that the card ships",
        train_llama,
        minutes=3,
        options={"steps": (400, "optimizer steps of 16 windows")},
    ),
}
