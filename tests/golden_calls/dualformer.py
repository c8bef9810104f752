"""Golden cases of `dualformer` that are no forward: A* traces, levels of dropping, Sokoban's words."""

from __future__ import annotations

import random
from typing import Any

import torch

from hf_ext.data import maze, sokoban
from hf_ext.models.dualformer import DualformerTokenizer
from hf_ext.training.dualformer import LEVELS, DualformerCollator, TraceDropping
from tests.goldens import call_arguments, run_model

ACTIONS = ("create", "close", "plan")


def run(case: dict[str, Any]) -> Any:
    if case["state"]:
        return run_model(case)
    arguments, call = case["arguments"], call_arguments(case)
    if "deterministic" in arguments:
        return solve_mazes(call, arguments["deterministic"])
    return drop(call, arguments["mixture"]) if "mixture" in arguments else tokenize_sokoban(call, arguments)


def ids(tokenizer: DualformerTokenizer, words: list[str]) -> torch.Tensor:
    return torch.tensor(DualformerCollator(tokenizer).encode(words))


def solve_mazes(call: dict[str, torch.Tensor], deterministic: bool) -> dict[str, Any]:
    outputs = {}
    for name, numbers in call.items():
        task = maze.Maze.from_integers(numbers.tolist())
        tokenizer = DualformerTokenizer.for_maze(task.width, task.height)
        search = task.search(deterministic=deterministic)
        outputs |= {
            f"{name}.prompt_ids": tokenizer(" ".join(task.prompt), return_tensors="pt")["input_ids"][0],
            f"{name}.reasoning_ids": ids(tokenizer, maze.reasoning_words(search)),
            f"{name}.plan_ids": ids(tokenizer, maze.plan_words(search.path)),
            f"{name}.vocab_size": len(tokenizer),
        }
    return outputs


def drop(call: dict[str, Any], mixture: dict[str, float]) -> dict[str, Any]:
    tokenizer = DualformerTokenizer.for_maze(call["width"], call["height"])
    reasoning, plan = (tokenizer.convert_ids_to_tokens(call[f"{part}_ids"].tolist()) for part in ("reasoning", "plan"))
    runs = {level: (call["seeds"][0], {level: 1.0}) for level in LEVELS}
    runs |= {f"mix{seed}": (seed, mixture) for seed in call["seeds"]}
    outputs = {}
    for name, (seed, probabilities) in runs.items():
        kept = TraceDropping(**probabilities, generator=random.Random(seed))(reasoning)
        outputs[f"{name}.decoder_ids"] = ids(tokenizer, ["bos", *kept, *plan, "eos"])
        outputs[f"{name}.plan_start"] = len(kept) + 1
    return outputs


def tokenize_sokoban(call: dict[str, torch.Tensor], arguments: dict[str, int]) -> dict[str, Any]:
    tokenizer = DualformerTokenizer.for_sokoban(**arguments)
    outputs = {}
    for number in (name.removeprefix("level") for name in call if name.startswith("level")):
        level = state(call[f"level{number}"])
        words = {"reasoning": [], "plan": []}
        for cells, (action, *costs) in zip(call[f"steps{number}"], call[f"meta{number}"].tolist()):
            if ACTIONS[action] == "plan":
                words["plan"] += sokoban.plan_words([state(cells)])
            else:
                words["reasoning"] += sokoban.step_words(ACTIONS[action], state(cells), *costs)
        outputs |= {f"level{number}.{part}_ids": ids(tokenizer, found) for part, found in words.items()}
        outputs[f"level{number}.prompt_ids"] = tokenizer(" ".join(level.prompt), return_tensors="pt")["input_ids"][0]
        outputs[f"level{number}.optimal_plan_length"] = level.shortest()
    return outputs


def state(cells: torch.Tensor) -> sokoban.Sokoban:
    return sokoban.Sokoban(tuple("".join(map(chr, row)) for row in cells.tolist()))
