"""Dualformer on small mazes: one model in three modes, against models that learn the solution alone or always the whole trace.

All three have the same size, tasks and number of steps; the test mazes have layouts of walls that no training maze has. Answers are
greedy. An answer is optimal if it leads from start to goal over free cells and is as long as A*'s path.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import GenerationConfig

from hf_ext.data.maze import MazeTask, maze_tasks, read_plan
from hf_ext.files import replaced_files
from hf_ext.models.dualformer import DualformerConfig, DualformerForConditionalGeneration, DualformerTokenizer
from hf_ext.models.dualformer.configuration_dualformer import swiglu_width
from hf_ext.training.dualformer import DualformerCollator, TraceDropping

from . import Experiment, Row, Run

SIZE = 4
TRAINING_TASKS, TEST_TASKS = 20000, 200
BATCH = 32
MAX_LENGTH = 256
STACK = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": swiglu_width(64, 32),
}
DATASET = f"mazes {SIZE} x {SIZE}, {TEST_TASKS} layouts not trained on"
# name -> probabilities of the levels of dropping, modes to measure
MODELS = {
    "mixture": ({}, ("fast", "slow", "auto")),
    "solution-only": (dict.fromkeys(("no_close", "no_cost", "no_create"), 0.0) | {"no_trace": 1.0}, ("auto",)),
    "complete-trace": (dict.fromkeys(("no_close", "no_cost", "no_create", "no_trace"), 0.0), ("auto",)),
}
OPTIONS = {"steps": (1500, f"optimizer steps of {BATCH} tasks")}


def trained(run: Run, name: str, tokenizer: DualformerTokenizer) -> DualformerForConditionalGeneration:
    from .training import train

    steps = int(run.options["steps"])
    torch.manual_seed(0)
    vocabulary = tokenizer.get_vocab()
    config = DualformerConfig(
        encoder=STACK,
        decoder=STACK,
        vocab_size=len(tokenizer),
        plan_token_id=vocabulary["plan"],
        create_token_id=vocabulary["create"],
        initializer_range=STACK["hidden_size"] ** -0.5,  # 0.02 suits the published widths, not this one
    )
    probabilities, _ = MODELS[name]
    model = train(
        replace(run, folder=run.folder / name),
        DualformerForConditionalGeneration(config),
        list(maze_tasks(TRAINING_TASKS, SIZE, SIZE)),
        collator=DualformerCollator(tokenizer, TraceDropping.maze(**probabilities, generator=random.Random(0))),
        max_steps=steps,
        save_steps=250,
        per_device_train_batch_size=BATCH,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 12,
        adam_beta2=0.99,
        weight_decay=0.01,
        max_grad_norm=1.0,
        remove_unused_columns=False,
    )
    model.config.use_cache = True  # which Trainer turns off
    return model


@torch.no_grad()
def answers(
    model: DualformerForConditionalGeneration, tokenizer: DualformerTokenizer, tasks: Sequence[MazeTask], mode: str
) -> list[list[str]]:
    """The words of a greedy answer to each task. Prompts of a batch are equally long: the encoder sees padding."""
    by_length = defaultdict(list)
    for number, task in enumerate(tasks):
        by_length[len(task.prompt)].append(number)
    found: list[list[str]] = [[]] * len(tasks)
    for numbers in by_length.values():
        prompts = tokenizer([" ".join(tasks[number].prompt) for number in numbers], return_tensors="pt")
        written = model.generate(**prompts, mode=mode, do_sample=False, max_length=MAX_LENGTH)
        for number, ids in zip(numbers, written):
            found[number] = tokenizer.decode(ids, skip_special_tokens=True).split()
    return found


def measure(model: DualformerForConditionalGeneration, tokenizer: DualformerTokenizer, name: str) -> list[Row]:
    tasks = list(maze_tasks(TEST_TASKS, SIZE, SIZE, held_out=True, seed=1))
    rows = []
    for mode in MODELS[name][1]:
        written = answers(model, tokenizer, tasks, mode)
        plans = [read_plan(words) for words in written]
        solved = [task.maze.judge(plan) for task, plan in zip(tasks, plans)]
        optimal = [good and len(plan) == task.plan_length for task, plan, good in zip(tasks, plans, solved)]
        traces = [words.index("plan") if "plan" in words else len(words) for words in written]
        label = f"optimal, {name}" + (f", {mode}" if len(MODELS[name][1]) > 1 else "")
        note = f"solved {sum(solved) / len(tasks):.3f}; {sum(traces) / len(tasks):.1f} words of trace on average"
        rows.append(Row(label, sum(optimal) / len(tasks), "", DATASET, "accuracy" if name == "mixture" else "", note))
    return rows


def modes(run: Run) -> list[Row]:
    """The three models, one after the other."""
    tokenizer = DualformerTokenizer.for_maze(SIZE, SIZE)
    return [row for name in MODELS for row in measure(trained(run, name, tokenizer), tokenizer, name)]


def demo(run: Run) -> list[Row]:
    """The model of the mixture, saved in the card."""
    tokenizer = DualformerTokenizer.for_maze(SIZE, SIZE)
    model = trained(run, "mixture", tokenizer)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.generation_config.max_length = MAX_LENGTH
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return measure(model, tokenizer, "mixture")


EXPERIMENTS = {
    "modes": Experiment(
        "Optimal answers fast, slow and auto, beside solution-only and complete-trace", modes, 12, OPTIONS
    ),
    "demo": Experiment("The model of small mazes that the card ships", demo, 5, OPTIONS),
}
