"""Synthetic tasks that need a state: parity, modular arithmetic, products of permutations (arXiv 2411.12537, section 5).

Reference: automl/unlocking_state_tracking at df8f8407 (written anew from its description). The order of draws from the generator is the
reference's, so a seed gives the same sequences. Every task gives token ids and labels for a causal language model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import permutations

import numpy as np
import torch

IGNORED = -100  # no label here, for torch's losses


def parity(
    rng: np.random.Generator, count: int, length: int, shortest: int, longest: int, vocab_size: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of 1s and 2s and, last, 1 plus the number of 2s modulo 2, (count, length), 0 behind; and their sizes.

    Args:
        rng: the numbers it gives are those of the reference for the same seed.
        shortest, longest: bounds of a sequence's size, its answer included.
    """
    tokens = rng.integers(1, 3, (count, length - 1))
    sizes = rng.integers(shortest, longest + 1, count)
    rows = np.zeros((count, length), np.int64)
    for row, drawn, size in zip(rows, tokens, sizes):
        row[: size - 1] = drawn[: size - 1]
        row[size - 1] = 1 + (drawn[: size - 1] == 2).sum() % 2
    return rows, sizes


def modular_arithmetic(
    rng: np.random.Generator, count: int, length: int, shortest: int, longest: int, vocab_size: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """`5 + 7 * 6 = 8`: sums, differences and products modulo `vocab_size - 5`, * before + and -.

    Tokens: 0 padding, 1 +, 2 -, 3 *, 4 =, and 5 + n for the number n.
    """
    modulus = vocab_size - 5
    rows = rng.integers(modulus, size=(count, length)) + 5
    rows[:, 1::2] = rng.integers(3, size=(count, length // 2)) + 1
    low, high = (shortest + 1) // 2, (longest + 1) // 2
    sizes = 2 * rng.integers(min(low, high), high + 1, count) - 1
    for row, size in zip(rows, sizes):
        row[size - 2] = 4
        row[size - 1] = evaluate(row[: size - 2], modulus) + 5
        row[size:] = 0
    return rows, sizes


def evaluate(tokens: np.ndarray, modulus: int) -> int:
    """The value of number, operator, number, ... with * before + and -"""
    total, term = 0, int(tokens[0]) - 5
    for operator, number in zip(tokens[1::2], tokens[2::2] - 5):
        if operator == 3:
            term = term * int(number) % modulus
        else:
            total, term = total + term, int(number) * (1 if operator == 1 else -1)
    return (total + term) % modulus


def modular_arithmetic_with_brackets(
    rng: np.random.Generator,
    count: int,
    length: int,
    shortest: int,
    longest: int,
    vocab_size: int = 12,
    mult: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """`((3+-2)-4)=2`: nested sums and differences (with `mult` products too) modulo `vocab_size - 7`.

    Tokens: the numbers, then + - * ( ) = and padding.
    """
    modulus = vocab_size - 7
    plus, minus, times, opening, closing, equals, padding = range(modulus, modulus + 7)
    operations = {plus: int.__add__, minus: int.__sub__, times: int.__mul__}

    def expression(size: int) -> tuple[list[int], int]:
        if size <= 4:
            number = int(rng.integers(modulus))
            return {
                1: ([number], number),
                2: ([minus, number], -number % modulus),
                3: ([opening, number, closing], number),
                4: ([opening, minus, number, closing], -number % modulus),
            }[size]
        left_size = int(rng.integers(1, size - 3))
        (left, a), (right, b) = expression(left_size), expression(size - left_size - 3)
        operator = plus + int(rng.integers(0, 3 if mult else 2))
        return [opening, *left, operator, *right, closing], operations[operator](a, b) % modulus

    rows, sizes = np.full((count, length), padding, np.int64), np.zeros(count, np.int64)
    for index, row in enumerate(rows):
        drawn = max(int(rng.integers(shortest, longest + 1)), 5)
        tokens, value = expression(drawn - 3)
        sizes[index] = len(tokens) + 2
        row[: sizes[index]] = [*tokens, equals, value]
    return rows, sizes


TASKS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "parity": parity,
    "modular_arithmetic": modular_arithmetic,
    "modular_arithmetic_with_brackets": modular_arithmetic_with_brackets,
}
SHORTEST = {"parity": 1, "modular_arithmetic": 3, "modular_arithmetic_with_brackets": 1}
VOCABULARY = {"parity": 3, "modular_arithmetic": 10, "modular_arithmetic_with_brackets": 12}


def samples(
    task: str,
    seed: int,
    num_samples: int,
    context_length: int,
    min_sequence_length: int = 3,
    max_sequence_length: int = 40,
    vocab_size: int | None = None,
    mult: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids with the answer replaced by 0, and labels that name it at its own place, -100 elsewhere; (num_samples, length) each.

    As causal language models shift labels by one, the answer is asked for where the token before it was read.

    Args:
        task: one of `TASKS`.
        seed: of numpy's `default_rng`.
        min_sequence_length, max_sequence_length: bounds of a sequence's size, its answer included; not above `context_length`.
        vocab_size: sets the modulus of the arithmetic tasks; the paper's when None.
        mult: whether expressions with brackets have products (in the authors' runs they do not).

    Raises:
        ValueError: an unknown task, or lengths and sizes that cannot be.
    """
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}; known are {', '.join(TASKS)}")
    vocab_size = VOCABULARY[task] if vocab_size is None else vocab_size
    if vocab_size < VOCABULARY[task] - (0 if task == "parity" else 3):
        raise ValueError(f"vocab_size={vocab_size} is too small for {task}: the paper has {VOCABULARY[task]}")
    if not SHORTEST[task] <= min_sequence_length <= max_sequence_length <= context_length:
        raise ValueError(
            f"{task} needs {SHORTEST[task]} <= min_sequence_length <= max_sequence_length <= context_length; "
            f"got {min_sequence_length}, {max_sequence_length}, {context_length}"
        )
    options = {"mult": mult} if task == "modular_arithmetic_with_brackets" else {}
    lengths = (context_length, min_sequence_length, max_sequence_length)
    rows, sizes = TASKS[task](np.random.default_rng(seed), num_samples, *lengths, vocab_size, **options)
    labels, answers = np.full_like(rows, IGNORED), (np.arange(num_samples), sizes - 1)
    labels[answers] = rows[answers]
    rows[answers] = 0
    return torch.from_numpy(rows), torch.from_numpy(labels)


def shifted(input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As the authors' data set hands them out: labels already shifted by one and -1 where there is none, (num_samples, length - 1) each."""
    return input_ids[:, :-1], labels[:, 1:].where(labels[:, 1:] != IGNORED, -1)


@cache
def symmetric_group(degree: int, moved: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The permutations of S_n in lexicographic order (n!, n), and the indices of those that move at most `moved` points (all if None)."""
    elements = np.array(list(permutations(range(degree))))
    displaced = (elements != np.arange(degree)).sum(1)
    return elements, np.flatnonzero(displaced <= (degree if moved is None else moved))


def word_problem(
    seed: int, num_samples: int, length: int, degree: int = 5, moved: int | None = None, tokens_per_element: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Words over S_n and their running products: token ids and labels (num_samples, 2 + length * tokens_per_element).

    Token 0 opens a word; token 1 + i is the i-th permutation in lexicographic order. After each element the label is 1 + the index of the
    product so far. The order of composition is p * q = "first q, then p" with the new element as p: x -> p[q[x]]. Labels stand one place
    behind their element, where causal language models shift them back; a last column of zeros makes room for the last one.

    Args:
        moved: only elements that move at most so many points: 2 leaves the identity and swaps, 3 adds the 3-cycles.
        tokens_per_element: each element is followed by that many less one times token n! + 1, and labelled after the last of them.

    Raises:
        ValueError: sizes below 1, or more words asked for than there are.
    """
    elements, allowed = symmetric_group(degree, moved)
    if min(num_samples, length, tokens_per_element) < 1:
        raise ValueError(
            f"sizes must be at least 1; got {num_samples} words of {length} elements of {tokens_per_element} tokens"
        )
    if num_samples > len(allowed) ** length:
        raise ValueError(
            f"there are only {len(allowed) ** length} words of {length} elements; {num_samples} were asked for"
        )
    rng = np.random.default_rng(seed)
    words = np.zeros((0, length), np.int64)
    while len(words) < num_samples:  # words are unique
        words = np.concatenate((words, allowed[rng.integers(len(allowed), size=(num_samples, length))]))
        words = words[np.sort(np.unique(words, axis=0, return_index=True)[1])]
    words = words[:num_samples]
    weights = degree ** np.arange(degree)[::-1]
    index = np.full(degree**degree, -1)
    index[elements @ weights] = np.arange(len(elements))
    state, products = np.tile(np.arange(degree), (num_samples, 1)), np.empty_like(words)
    for t, word in enumerate(words.T):
        state = np.take_along_axis(elements[word], state, 1)
        products[:, t] = index[state @ weights]
    ids = np.zeros((num_samples, length * tokens_per_element + 2), np.int64)
    labels = np.full_like(ids, IGNORED)
    ids[:, 1:-1] = len(elements) + 1
    ids[:, 1:-1:tokens_per_element] = words + 1
    labels[:, 1 + tokens_per_element :: tokens_per_element] = products + 1
    return torch.from_numpy(ids), torch.from_numpy(labels)
