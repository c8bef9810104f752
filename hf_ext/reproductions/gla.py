"""Gated Linear Attention: associative recall with and without the gate, exactness of the chunk form, and the card's small language model.

The recall task is multi-query associative recall by the recipe of Zoology (arXiv 2312.04927): a sequence opens with 4 to 8
key-value pairs, then the keys come again, the sooner the likelier (gaps follow a power law), among random tokens; the model has
to name each key's value. With this small vocabulary the random tokens are a third set beside keys and values: a key among them
would make its value ambiguous.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from hf_ext.data.text import byte_perplexity, byte_text
from hf_ext.files import replaced_files
from hf_ext.models.gla import GLAConfig, GLAForCausalLM
from hf_ext.ops.gla import gated_linear_attention, reference

from . import Experiment, Row, Run

KEYS, VALUES, NOISE = np.arange(1, 64), np.arange(64, 128), np.arange(128, 192)
LENGTH = 64
GAP_EXPONENT = 0.01
CONTEXT = 256


def recall_sequences(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, (count, LENGTH) each; the label stands behind the key it belongs to, as causal language models shift."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(NOISE, (count, LENGTH))
    labels = np.full((count, LENGTH), -100)
    for row, label in zip(ids, labels):
        pairs = rng.integers(4, 9)
        keys, values = rng.choice(KEYS, pairs, replace=False), rng.choice(VALUES, pairs)
        row[: 2 * pairs] = np.stack((keys, values), 1).ravel()
        places = np.arange((LENGTH - 2 * pairs) // 2)
        weights = GAP_EXPONENT * (places + 1.0) ** (GAP_EXPONENT - 1)
        queries = 2 * pairs + 2 * rng.choice(places, pairs, replace=False, p=weights / weights.sum())
        row[queries], label[queries + 1] = keys, values
    return torch.from_numpy(ids), torch.from_numpy(labels)


@torch.no_grad()
def recall_accuracy(model: GLAForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of queries whose value has the largest logit."""
    guesses = torch.cat([model(batch, use_cache=False).logits.argmax(-1) for batch in ids.split(64)])
    asked = labels[:, 1:] != -100
    return (guesses[:, :-1] == labels[:, 1:])[asked].float().mean().item()


class Curve(TrainerCallback):
    """Recall on held-out sequences, each `every` steps."""

    def __init__(self, every: int, ids: torch.Tensor, labels: torch.Tensor):
        self.every, self.test, self.points = every, (ids, labels), {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.points[state.global_step] = recall_accuracy(model.eval(), *self.test)
            model.train()


def recall(run: Run) -> list[Row]:
    """The same model twice: with its gate, and with the gate held at 1 (clamp_min=0), which is plain linear attention."""
    from .training import TensorDataset, train

    steps = int(run.options["steps"])
    ids, labels = recall_sequences(64 * steps, seed=1)
    dataset, test = TensorDataset(input_ids=ids, labels=labels), recall_sequences(512, seed=2)
    rows = []
    for name, clamp_min in (("GLA", None), ("gate held at 1", 0.0)):
        torch.manual_seed(0)
        config = GLAConfig(
            vocab_size=192,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_heads=2,
            expand_k=1.0,
            use_short_conv=True,
            clamp_min=clamp_min,
            use_cache=False,
        )
        curve = Curve(steps // 20, *test)
        part = Run(run.slug, run.folder / name.replace(" ", "-"), run.options)
        model = train(
            part,
            GLAForCausalLM(config),
            dataset,
            callbacks=[curve],
            max_steps=steps,
            per_device_train_batch_size=64,
            learning_rate=float(run.options["learning_rate"]),
            lr_scheduler_type="cosine",
            warmup_steps=steps // 20,
            weight_decay=0.1,
            max_grad_norm=1.0,
        )
        halfway = curve.points.get(steps // 2)
        reached = next((step for step, accuracy in curve.points.items() if accuracy > 0.99), None)
        rows.append(
            Row(
                f"recall, {name}",
                recall_accuracy(model, *test),
                "",
                "multi-query associative recall, 4-8 pairs, 64 tokens",
                "accuracy" if clamp_min is None else "",
                f"over 0.99 {'from step ' + str(reached) if reached else 'at no step'} of {steps}"
                + (f"; {halfway:.3f} at step {steps // 2}" if halfway is not None else ""),
            )
        )
    return rows


def exactness(run: Run) -> list[Row]:
    """Largest difference between chunk form and token loop in float32, relative to the largest value, over lengths and gate strengths."""
    rows = []
    for normalizer in (0.1, 1, 10, 16):
        errors = {}
        for length in (1, 63, 64, 65, 1000):
            generator = torch.Generator().manual_seed(length)
            q, k, v, logit = (torch.randn(2, length, 2, 32, generator=generator) for _ in range(4))
            g = F.logsigmoid(logit) / normalizer
            pairs = zip(gated_linear_attention(q, k, v, g, output_final_state=True), reference(q, k, v, g))
            errors[length] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        note = "by length " + ", ".join(f"{length}: {error:.1e}" for length, error in errors.items())
        rows.append(Row(f"log gate = logsigmoid(x) / {normalizer}", max(errors.values()), note=note))
    return rows


def demo(run: Run) -> list[Row]:
    """Trains the byte-level model of the card on the text that ships with scikit-learn, and saves it there."""
    from .training import TensorDataset, train

    torch.manual_seed(0)
    text = byte_text(CONTEXT)
    tokenizer = text.tokenizer
    config = GLAConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_heads=2,
        use_short_conv=True,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = train(
        run,
        GLAForCausalLM(config),
        TensorDataset(input_ids=text.train, labels=text.train),
        TensorDataset(input_ids=text.validation, labels=text.validation),
        max_steps=int(run.options["steps"]),
        save_steps=40,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=40,
        weight_decay=1.0,
        max_grad_norm=1.0,
    )
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return [
        Row(
            "held-out perplexity per byte",
            byte_perplexity(model, text.test),
            dataset="scikit-learn descriptions",
            metric_type="perplexity",
            note=f"{model.num_parameters():,} parameters, {text.size:,} bytes of training text",
        )
    ]


EXPERIMENTS = {
    "recall": Experiment(
        "Multi-query associative recall, with the gate and without",
        recall,
        minutes=4,
        options={"steps": (600, "optimizer steps of 64 sequences"), "learning_rate": (3e-3, "peak learning rate")},
    ),
    "exactness": Experiment("Chunk form against token loop, float32", exactness, minutes=0.2),
    "demo": Experiment(
        "The small language model that the card ships",
        demo,
        minutes=4,
        options={"steps": (320, "optimizer steps of 8 windows of 256 bytes")},
    ),
}
