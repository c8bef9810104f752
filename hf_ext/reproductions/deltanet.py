"""State tracking with eigenvalues in [0, 1] and in [-1, 1], side by side (arXiv 2411.12537, section 5).

The paper trains 20,000 to 100,000 steps of 256 sequences; here are hundreds or thousands of 64, so sequences start short and grow (a
curriculum that the paper does not have, the same for both ranges); but for arithmetic, models are half as wide. Longer sequences than
trained on are the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from hf_ext.data.state_tracking import IGNORED, VOCABULARY, samples, symmetric_group, word_problem
from hf_ext.files import replaced_files
from hf_ext.models.deltanet import DeltaNetConfig, DeltaNetForCausalLM, SignedMambaConfig, SignedMambaForCausalLM
from hf_ext.ops.delta_rule import delta_rule

from . import Experiment, Row, Run

BATCH = 64
RANGES = {"[0, 1]": False, "[-1, 1]": True}
TRAINED, TESTED = (3, 40), (40, 256)
Batch = tuple[torch.Tensor, torch.Tensor]


def deltanet(vocab_size: int, allow_neg_eigval: bool, **fields) -> DeltaNetForCausalLM:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_heads": 4} | fields
    return DeltaNetForCausalLM(
        DeltaNetConfig(vocab_size=vocab_size, allow_neg_eigval=allow_neg_eigval, use_cache=False, **sizes)
    )


def mamba(vocab_size: int, allow_neg_eigval: bool) -> SignedMambaForCausalLM:
    fields = SignedMambaConfig.PRESETS["mamba-parity"] | {"hidden_size": 64, "vocab_size": vocab_size}
    return SignedMambaForCausalLM(SignedMambaConfig(allow_neg_eigval=allow_neg_eigval, use_cache=False, **fields))


@dataclass
class Stage:
    """`share` of the steps on sequences of at most `longest` tokens."""

    longest: int
    share: float


STAGES = (Stage(6, 0.3), Stage(12, 0.3), Stage(24, 0.2), Stage(40, 0.2))
SLOW_STAGES = tuple(
    Stage(longest, share / 100)
    for longest, share in ((6, 8), (8, 8), (10, 10), (12, 12), (16, 14), (20, 12), (24, 10), (32, 12), (40, 14))
)


def train_in_stages(
    run: Run,
    name: str,
    model: PreTrainedModel,
    draw: Callable[[int, int, int], Batch],
    stages: Sequence[Stage],
    rate: float,
) -> PreTrainedModel:
    """Trains on `draw(seed, count, longest)` stage by stage; each stage resumes from a folder of its own."""
    from .training import TensorDataset, train

    for index, stage in enumerate(stages):
        steps = round(int(run.options["steps"]) * stage.share)
        ids, labels = draw(1 + index, BATCH * steps, stage.longest)
        last = index == len(stages) - 1
        model = train(
            Run(run.slug, run.folder / name / str(stage.longest), run.options),
            model,
            TensorDataset(input_ids=ids, labels=labels),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=rate,
            lr_scheduler_type="cosine" if last else "constant_with_warmup",
            warmup_steps=steps // 10,
            weight_decay=0.0,
            max_grad_norm=1.0,
        )
    return model


@torch.no_grad()
def right(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each place is predicted right, and whether it has a label, (sequences, length - 1) each."""
    ids, labels = batch
    guesses = torch.cat([model(part).logits.argmax(-1) for part in ids.split(BATCH)])
    return guesses[:, :-1] == labels[:, 1:], labels[:, 1:] != IGNORED


def scaled_accuracy(model: PreTrainedModel, batch: Batch, answers: int) -> float:
    """0 for guessing among `answers`, 1 for all right"""
    correct, asked = right(model, batch)
    return ((correct & asked).sum() / asked.sum()).item() * answers / (answers - 1) - 1 / (answers - 1)


def scores(run: Run, model: PreTrainedModel, task: str, label: str, answers: int, paper: str, **options) -> list[Row]:
    """A row for lengths beyond those trained on, which names the accuracy within them too."""
    within, beyond = (
        scaled_accuracy(model, samples(task, 10_000, 512, longest, shortest, longest, **options), answers)
        for shortest, longest in (TRAINED, TESTED)
    )
    note = f"{within:.3f} at lengths {TRAINED[0]}-{TRAINED[1]}; {model.num_parameters():,} parameters, {run.options['steps']} steps"
    return [Row(f"{task}, {label}: scaled accuracy at lengths {TESTED[0]}-{TESTED[1]}", beyond, paper, note=note)]


def parity(run: Run) -> list[Row]:
    """DeltaNet and Mamba, each with both ranges; the DeltaNet that solves it is the card's checkpoint."""
    task, rows = "parity", []
    paper = {
        ("DeltaNet", False): "0.017",
        ("DeltaNet", True): "1.000",
        ("Mamba", False): "0.000",
        ("Mamba", True): "1.000",
    }
    for name, build, rate in (("DeltaNet", deltanet, 5e-3), ("Mamba", mamba, 1e-2)):
        for interval, signed in RANGES.items():
            torch.manual_seed(0)
            model = build(VOCABULARY[task], signed)

            def draw(seed: int, count: int, longest: int) -> Batch:
                return samples(task, seed, count, longest, TRAINED[0], longest)

            train_in_stages(run, f"{name}-{signed}", model, draw, STAGES, rate)
            rows += scores(run, model, task, f"{name} {interval}", 2, paper[name, signed])
            if name == "DeltaNet" and signed:
                with replaced_files(run.card) as folder:
                    model.save_pretrained(folder)
    return rows


ARITHMETIC = {  # scaled accuracies of the paper
    "modular_arithmetic": {False: "0.314", True: "0.971"},
    "modular_arithmetic_with_brackets": {False: "0.137", True: "0.200"},
}


def arithmetic(task: str, run: Run) -> list[Row]:
    """Modular arithmetic, with brackets sums and differences alone as in the authors' runs: DeltaNet of the paper's size, both ranges."""
    rows = []
    for interval, signed in RANGES.items():
        torch.manual_seed(0)
        model = deltanet(VOCABULARY[task], signed, hidden_size=128, intermediate_size=512)

        def draw(seed: int, count: int, longest: int) -> Batch:
            return samples(task, seed, count, longest, TRAINED[0], longest)

        train_in_stages(run, f"{task}-{signed}", model, draw, SLOW_STAGES, 1e-3)
        rows += scores(run, model, task, f"DeltaNet {interval}", 5, ARITHMETIC[task][signed])
    return rows


def swaps(run: Run) -> list[Row]:
    """Words of swaps in S5, one layer of DeltaNet, no short convolution; every prefix has its product to name."""
    vocab_size, rows = len(symmetric_group(5)[0]) + 2, []
    for interval, signed in RANGES.items():
        torch.manual_seed(0)
        model = deltanet(vocab_size, signed, num_hidden_layers=1, use_short_conv=False)

        def draw(seed: int, count: int, longest: int) -> Batch:
            return word_problem(seed, count, longest, moved=2)

        stages = (Stage(6, 0.25), Stage(10, 0.25), Stage(16, 0.5))
        train_in_stages(run, f"swaps-{signed}", model, draw, stages, 5e-3)
        for length, paper in ((16, ""), (64, "")):
            correct, asked = right(model, word_problem(10_000, 256, length, moved=2))
            whole = (correct | ~asked).all(1).float().mean().item()
            note = f"{((correct & asked).sum() / asked.sum()).item():.3f} of all places right; trained on 16 swaps"
            rows.append(
                Row(f"S5 swaps, DeltaNet {interval}, 1 layer: words of {length} all right", whole, paper, note=note)
            )
    return rows


def construction(run: Run) -> list[Row]:
    """No training: the sign of one number is the parity, reflections are swaps; exact at any length with eigenvalue -1."""
    rows, tokens = [], 100_000
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (1, tokens, 1), generator=generator)
    ones, zeros = torch.ones(1, tokens, 1, 1), torch.zeros(1, tokens, 1, 1)
    for interval, step in (("[0, 1]", 1.0), ("[-1, 1]", 2.0)):
        o, _ = delta_rule(ones, ones, zeros, step * bits, initial_state=torch.ones(1, 1, 1, 1))
        correct = ((o[0, :, 0, 0] < 0).long() == bits.cumsum(1)[0, :, 0] % 2).float().mean().item()
        rows.append(Row(f"parity of up to {tokens:,} bits, {interval}: accuracy", correct))

    tokens = 10_000
    pairs = torch.combinations(torch.arange(5))[torch.randint(0, 10, (tokens,), generator=generator)]
    keys = torch.zeros(tokens, 5).scatter(1, pairs, torch.tensor([[1.0, -1.0]]).expand(tokens, 2)) * 0.5**0.5
    state = torch.eye(5).view(1, 1, 5, 5)
    expected = torch.arange(5)
    for first, second in pairs.tolist():
        expected[[first, second]] = expected[[second, first]]
    for interval, step in (("[0, 1]", 1.0), ("[-1, 1]", 2.0)):
        arguments = (
            keys[None, :, None],
            keys[None, :, None],
            torch.zeros(1, tokens, 1, 5),
            torch.full((1, tokens, 1), step),
        )
        _, final = delta_rule(*arguments, initial_state=state, output_final_state=True)
        correct = float(torch.equal(final[0, 0].argmax(-1), expected) and final.max().item() > 0.5)
        rows.append(Row(f"product of {tokens:,} swaps in S5, {interval}: right", correct))
    return rows


EXPERIMENTS = {
    "parity": Experiment(
        "Parity with eigenvalues in [0, 1] and in [-1, 1]",
        parity,
        minutes=4,
        options={"steps": (400, "optimizer steps of 64 sequences, per model")},
    ),
    "arithmetic": Experiment(
        "Modular arithmetic without brackets",
        partial(arithmetic, "modular_arithmetic"),
        minutes=25,
        options={"steps": (8000, "optimizer steps of 64 sequences, per model")},
    ),
    "brackets": Experiment(
        "Modular arithmetic with brackets",
        partial(arithmetic, "modular_arithmetic_with_brackets"),
        minutes=25,
        options={"steps": (8000, "optimizer steps of 64 sequences, per model")},
    ),
    "swaps": Experiment(
        "Word problem of S5, swaps only",
        swaps,
        minutes=2,
        options={"steps": (300, "optimizer steps of 64 words, per model")},
    ),
    "construction": Experiment("Parity and swaps by construction, without training", construction, minutes=0.1),
}
