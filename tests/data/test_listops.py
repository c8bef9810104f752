"""ListOps: expressions have the value that they say."""

import random

import pytest

from hf_ext.data.listops import VOCABULARY, expression, listops

NAMES = {number: token for token, number in VOCABULARY.items()}


def evaluate(tokens):
    """Another way to the value, with a stack"""
    stack = []
    for token in tokens:
        if token != "]":
            stack.append(token)
            continue
        values = []
        while not str(stack[-1]).startswith("["):
            values.append(int(stack.pop()))
        ordered, middle = sorted(values), len(values) // 2
        med = ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
        name = stack.pop()
        stack.append({"[MIN": ordered[0], "[MAX": ordered[-1], "[MED": med, "[SM": sum(values) % 10}[name])
    return int(stack[0])


def test_values_are_those_of_the_expressions():
    ids, values = listops(200)
    for row, value in zip(ids.tolist(), values.tolist()):
        assert evaluate([NAMES[number] for number in row if number]) == value


def test_known_expression():
    assert evaluate(["[MAX", "2", "9", "[MIN", "4", "7", "]", "0", "]"]) == 9


def test_lengths_and_seeds():
    ids, _ = listops(50, max_length=30)
    assert ids.shape == (50, 30) and (ids[:, 0] > 10).all()
    assert ids.equal(listops(50, max_length=30)[0]) and not ids.equal(listops(50, max_length=30, seed=1)[0])


def test_depth_is_the_number_of_nested_lists():
    for seed in range(30):
        tokens, _ = expression(random.Random(seed), depth=2, max_arguments=3)
        depth = deepest = 0
        for token in tokens:
            depth += token.startswith("[") - (token == "]")
            deepest = max(deepest, depth)
        assert deepest <= 2


@pytest.mark.parametrize("sizes", [{"count": 0}, {"depth": 0}, {"max_arguments": 1}, {"max_length": 3}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="ListOps needs"):
        listops(**{"count": 1} | sizes)
