"""FlashRNN: parity, which recurrent networks with nonlinear recurrence track at any length, beside a Transformer; exactness of the op.

Parity is the word problem of two elements: after each bit the model names the parity so far. Training reads 40 bits, the test 256.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_ext.data.state_tracking import IGNORED, word_problem
from hf_ext.files import replaced_files
from hf_ext.models.flashrnn import FlashRNNConfig, FlashRNNForCausalLM
from hf_ext.ops.flashrnn import CELLS, flashrnn, reference

from . import Experiment, Row, Run

BITS, TEST_BITS = 40, 256
BATCH = 64
VOCABULARY = 3  # start, "keep", "swap"; answers 1 (even) and 2 (odd) stand for the same
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "use_cache": False}


def recurrent(function: str) -> FlashRNNForCausalLM:
    torch.manual_seed(0)
    return FlashRNNForCausalLM(
        FlashRNNConfig(num_hidden_layers=1, num_heads=2, function=function, eos_token_id=None, **SIZES)
    )


def transformer() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=4, bos_token_id=None, eos_token_id=None, **SIZES)
    return LlamaForCausalLM(config)


@torch.no_grad()
def accuracies(model: PreTrainedModel) -> tuple[float, float]:
    """Share of right answers on 256 words of 256 bits: within the trained 40, and behind them."""
    ids, labels = word_problem(seed=2, num_samples=256, length=TEST_BITS, degree=2)
    guesses = torch.cat([model(batch).logits.argmax(-1) for batch in ids.split(64)])[:, :-1]
    right, asked = guesses == labels[:, 1:], labels[:, 1:] != IGNORED
    parts = (slice(0, BITS + 1), slice(BITS + 1, None))
    return tuple(right[:, part][asked[:, part]].float().mean().item() for part in parts)


def learn(run: Run, name: str, model: nn.Module, factor: float = 1.0) -> nn.Module:
    from .training import TensorDataset, train

    steps = int(run.options["steps"])
    ids, labels = word_problem(seed=1, num_samples=BATCH * steps, length=BITS, degree=2)
    return train(
        Run(run.slug, run.folder / name, run.options),
        model,
        TensorDataset(input_ids=ids, labels=labels),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=factor * float(run.options["learning_rate"]),
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=0.0,
        max_grad_norm=1.0,
    )


def parity(run: Run) -> list[Row]:
    models = {function: recurrent(function) for function in CELLS} | {"Llama, two layers": transformer()}
    rows = []
    for name, model in models.items():
        factor = 1.0 if name in CELLS else 0.1
        inside, outside = accuracies(learn(run, name.split(",")[0], model, factor))
        paper = {"lstm": "solved", "slstm": "solved"}.get(name, "" if name in CELLS else "not solved")
        note = f"{outside:.4f} on bits {BITS + 1} to {TEST_BITS}; {model.num_parameters():,} parameters"
        rows.append(Row(f"parity, first {BITS} bits, {name}", inside, paper, note=note))
    return rows


def exactness(run: Run) -> list[Row]:
    """Largest distance of h in float32 from the token loop in float64, over lengths; 2 sequences, 2 heads of 32 channels."""
    rows = []
    for function, cell in CELLS.items():
        errors = {}
        for length in (1, 63, 64, 65, 1000):
            generator = torch.Generator().manual_seed(length)
            shapes = (2, length, cell.num_inputs, 2, 32), (cell.num_recurrent, 2, 32, 32), (cell.pre_activations, 2, 32)
            Wx, R, b = (torch.randn(shape, generator=generator) for shape in shapes)
            tensors = (Wx, R * 32**-0.5, b)
            expected, _ = reference(*(x.double() for x in tensors), function=function)
            errors[length] = (flashrnn(*tensors, function=function)[0][0] - expected[0]).abs().max().item()
        note = "by length " + ", ".join(f"{length}: {error:.1e}" for length, error in errors.items())
        rows.append(Row(f"{function}, largest error of h", max(errors.values()), note=note))
    return rows


def demo(run: Run) -> list[Row]:
    """Trains the LSTM of the card and saves it there."""
    model = learn(run, "lstm", recurrent("lstm"))
    model.config.use_cache = True
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
    _, outside = accuracies(model)
    return [
        Row(
            f"parity, bits {BITS + 1} to {TEST_BITS}",
            outside,
            dataset="running parity of 256 bits",
            metric_type="accuracy",
            note=f"{model.num_parameters():,} parameters, trained on {BITS} bits",
        )
    ]


OPTIONS = {
    "steps": (1000, "optimizer steps of 64 sequences"),
    "learning_rate": (1e-2, "peak learning rate; a tenth of it for the Transformer"),
}
EXPERIMENTS = {
    "parity": Experiment("Running parity of 40 bits, tested on 256", parity, minutes=3, options=OPTIONS),
    "exactness": Experiment("The op in float32 against the token loop in float64", exactness, minutes=0.2),
    "demo": Experiment("The small model that the card ships", demo, minutes=0.5, options=OPTIONS),
}
