"""Structured trace dropping: what lets one model answer with a whole search trace, parts of one, or none.

    collator = DualformerCollator(tokenizer, TraceDropping.maze())
    Trainer(model, TrainingArguments(..., remove_unused_columns=False), train_dataset=list(maze_tasks(...)), data_collator=collator).train()

Paper: Dualformer, arXiv 2410.09918, section 3.1. Reference: facebookresearch/dualformer, whose third level for mazes departs from the
paper: it keeps the costs and drops 10 to 40 % of the create clauses. That is the default here; `paper_levels=True` takes the paper's.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

LEVELS = ("no_close", "no_cost", "no_create", "no_trace")
PAPER_DROP_PERCENT = 30
MAZE_DROP_PERCENT = (10, 40)
SOKOBAN_DROP_PROBABILITY = 0.3
DOMAINS = ("maze", "sokoban")


def create_clauses(reasoning: Sequence[str]) -> list[list[str]]:
    """The clauses that open with `create`, each up to the next `create` or `close`."""
    clauses: list[list[str]] = []
    for word in reasoning:
        if word in ("create", "close"):
            clauses.append([])
        elif not clauses:
            raise ValueError(f"A trace opens with create or close, not with {word!r}")
        clauses[-1].append(word)
    return [clause for clause in clauses if clause[0] == "create"]


def without_costs(clause: Sequence[str]) -> list[str]:
    return [word for word in clause if word == "create" or not word.startswith("c")]


@dataclass
class TraceDropping:
    """Draws how much of a trace to leave out; called with a trace's words, it returns those that stay.

    Level 1, `no_close`, leaves the close clauses out; level 2, `no_cost`, the costs too; level 3, `no_create`, some create clauses too;
    level 4, `no_trace`, all.

    Args:
        no_close, no_cost, no_create, no_trace: probabilities of levels 1 to 4; what they leave to 1 is that of a complete trace.
        domain: "maze" or "sokoban", whose third levels differ.
        paper_levels: the paper's third level, which drops 30 % of the clauses of level 2, instead of the reference's.
        generator: of all draws.

    Raises:
        ValueError: probabilities that are none, or together exceed 1; an unknown domain.
    """

    no_close: float = 0.0
    no_cost: float = 0.0
    no_create: float = 0.0
    no_trace: float = 0.0
    domain: str = "maze"
    paper_levels: bool = False
    generator: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        if min(self.probabilities.values()) < 0 or sum(self.probabilities.values()) > 1 + 1e-9:
            raise ValueError(
                f"The levels' probabilities must be 0 or more and at most 1 together, got {self.probabilities}"
            )
        if self.domain not in DOMAINS:
            raise ValueError(f"`domain` must be one of {', '.join(DOMAINS)}, got {self.domain!r}")

    @property
    def probabilities(self) -> dict[str, float]:
        return {level: getattr(self, level) for level in LEVELS}

    @classmethod
    def maze(cls, **fields: Any) -> TraceDropping:
        """The paper's mixture for mazes: 45 % complete, 5 % without a trace, the rest even."""
        return cls(**{"no_close": 1 / 6, "no_cost": 1 / 6, "no_create": 1 / 6, "no_trace": 0.05, **fields})

    @classmethod
    def sokoban(cls, **fields: Any) -> TraceDropping:
        """The paper's mixture for Sokoban: 80 % complete, 5 % each level."""
        return cls(**{**dict.fromkeys(LEVELS, 0.05), "domain": "sokoban", **fields})

    @property
    def redraws(self) -> bool:
        """Whether a trace is thinned anew each epoch; those of Sokoban keep their first draw, as in the reference."""
        return self.domain == "maze"

    def __call__(self, reasoning: Sequence[str]) -> list[str]:
        clauses = create_clauses(reasoning)
        fewer = self.drop_creates(clauses)  # drawn whether or not it is used, so that draws fall as in the reference
        level = self.draw_level()
        if level is None:
            return list(reasoning)
        kept = {
            "no_close": lambda: clauses,
            "no_cost": lambda: [without_costs(clause) for clause in clauses],
            "no_create": lambda: fewer,
            "no_trace": lambda: [],
        }[level]()
        return [word for clause in kept for word in clause]

    def drop_creates(self, clauses: list[list[str]]) -> list[list[str]]:
        """Level 3"""
        if self.domain == "sokoban" and not self.paper_levels:
            return [without_costs(c) for c in clauses if self.generator.random() >= SOKOBAN_DROP_PROBABILITY]
        percent = PAPER_DROP_PERCENT if self.paper_levels else self.generator.randint(*MAZE_DROP_PERCENT)
        dropped = set(self.generator.sample(range(len(clauses)), len(clauses) * percent // 100))
        kept = [clause for number, clause in enumerate(clauses) if number not in dropped]
        return [without_costs(clause) for clause in kept] if self.paper_levels else kept

    def draw_level(self) -> str | None:
        """None for a complete trace"""
        drawn, border = self.generator.random(), 0.0
        for level, probability in self.probabilities.items():
            border += probability
            if drawn < border:
                return level
        return None


class DualformerCollator:
    """Batches tasks with `prompt`, `reasoning` and `plan` (lists of words, as attributes or keys), traces thinned by `dropping`.

    Gives input_ids (bos prompt eos), attention_mask, decoder_input_ids (bos trace plan) and labels (trace plan eos, -100 at padding).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, dropping: TraceDropping | None = None):
        self.ids = tokenizer.get_vocab()
        self.bos, self.eos, self.pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        self.dropping = dropping
        self.drawn: dict[Hashable, list[str]] = {}

    def __call__(self, tasks: Sequence[Any]) -> dict[str, torch.Tensor]:
        prompts = [[self.bos, *self.encode(read(task, "prompt")), self.eos] for task in tasks]
        answers = [[*self.encode([*self.thinned(task), *read(task, "plan")]), self.eos] for task in tasks]
        return {
            "input_ids": padded(prompts, self.pad),
            "attention_mask": padded([[1] * len(prompt) for prompt in prompts], 0),
            "decoder_input_ids": padded([[self.bos, *answer[:-1]] for answer in answers], self.pad),
            "labels": padded(answers, -100),
        }

    def encode(self, words: Sequence[str]) -> list[int]:
        try:
            return [self.ids[word] for word in words]
        except KeyError as error:
            raise ValueError(f"The word {error} is not in the vocabulary") from None

    def thinned(self, task: Any) -> list[str]:
        reasoning = read(task, "reasoning")
        if self.dropping is None:
            return reasoning
        if self.dropping.redraws:
            return self.dropping(reasoning)
        key = tuple(read(task, "prompt"))
        if key not in self.drawn:
            self.drawn[key] = self.dropping(reasoning)
        return self.drawn[key]


def read(task: Any, name: str) -> list[str]:
    return task[name] if isinstance(task, Mapping) else getattr(task, name)


def padded(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    """(rows, longest), filled up behind"""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
