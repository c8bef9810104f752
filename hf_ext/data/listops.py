"""ListOps (arXiv 1804.06028, in the form of Long Range Arena, arXiv 2011.04006): nested lists of digits under an operator, and their value.

`[MAX 2 9 [MIN 4 7 ] 0 ]` is 9. Operators are MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10).
"""

from __future__ import annotations

import random
from statistics import median

import torch

OPERATORS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(median(values)),
    "[SM": lambda values: sum(values) % 10,
}
# 0 is padding
VOCABULARY = {token: number for number, token in enumerate(["<pad>", *map(str, range(10)), *OPERATORS, "]"])}
VALUE_PROBABILITY = 0.25


def expression(generator: random.Random, depth: int, max_arguments: int) -> tuple[list[str], int]:
    """Tokens of a random expression of at most `depth` nested lists, and its value 0 to 9."""
    if depth == 0 or generator.random() < VALUE_PROBABILITY:
        value = generator.randrange(10)
        return [str(value)], value
    operator = generator.choice(list(OPERATORS))
    parts = [expression(generator, depth - 1, max_arguments) for _ in range(generator.randint(2, max_arguments))]
    tokens = [operator, *(token for part, _ in parts for token in part), "]"]
    return tokens, OPERATORS[operator]([value for _, value in parts])


def listops(
    count: int, depth: int = 3, max_arguments: int = 4, max_length: int = 100, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, max_length) token ids padded with 0 behind, and (count,) values 0 to 9; every expression has an operator.

    Raises:
        ValueError: sizes for which there is no expression.
    """
    if count < 1 or depth < 1 or max_arguments < 2 or max_length < 4:
        raise ValueError(
            "ListOps needs count and depth of 1 or more, 2 arguments and 4 tokens or more, got "
            f"count={count}, depth={depth}, max_arguments={max_arguments}, max_length={max_length}"
        )
    generator = random.Random(seed)
    ids, values = torch.zeros(count, max_length, dtype=torch.long), torch.empty(count, dtype=torch.long)
    for row in range(count):
        tokens: list[str] = []
        while not 1 < len(tokens) <= max_length:
            tokens, value = expression(generator, depth, max_arguments)
        ids[row, : len(tokens)] = torch.tensor([VOCABULARY[token] for token in tokens])
        values[row] = value
    return ids, values
