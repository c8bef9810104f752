"""State-tracking tasks: answers that are right, lengths in bounds, the same sequences for the same seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.state_tracking import IGNORED, TASKS, samples, shifted, symmetric_group, word_problem


def questions(task, **arguments):
    """For each sequence its tokens before the answer, and the answer."""
    ids, labels = samples(task, **{"seed": 3, "num_samples": 50, "context_length": 48} | arguments)
    for row, label in zip(ids, labels):
        (place,) = (label != IGNORED).nonzero()[:, 0].tolist()
        assert row[place] == 0
        yield row[:place].tolist(), label[place].item()


def test_parity_counts_the_twos():
    for tokens, answer in questions("parity"):
        assert set(tokens) <= {1, 2} and answer == 1 + tokens.count(2) % 2


def test_modular_arithmetic_multiplies_first():
    text = {1: "+", 2: "-", 3: "*"} | {5 + n: str(n) for n in range(5)}
    for tokens, answer in questions("modular_arithmetic"):
        assert tokens.pop() == 4
        assert answer == 5 + eval("".join(text[token] for token in tokens)) % 5


@pytest.mark.parametrize("mult", [False, True])
def test_expressions_with_brackets_have_their_value(mult):
    text = dict(enumerate("01234+-*()"))
    seen = set()
    for tokens, answer in questions("modular_arithmetic_with_brackets", mult=mult):
        assert tokens.pop() == 10
        seen |= set(tokens)
        assert answer == eval("".join(text[token] for token in tokens)) % 5
    assert (7 in seen) == mult


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_sequences(task):
    first, again, other = (samples(task, seed, 5, 48) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])


def test_labels_shift_as_the_authors_hand_them_out():
    ids, labels = samples("parity", 0, 4, 48)
    inputs, targets = shifted(ids, labels)
    assert torch.equal(inputs, ids[:, :-1]) and ((targets == -1) == (labels[:, 1:] == IGNORED)).all()


def test_words_name_the_product_after_each_element():
    ids, labels = word_problem(0, 20, 6, degree=4)
    elements, _ = symmetric_group(4)
    for row, label in zip(ids.numpy(), labels.numpy()):
        state = np.arange(4)
        for element, product in zip(row[1:-1] - 1, label[2:] - 1):
            state = elements[element][state]
            assert (elements[product] == state).all()
    assert (labels[:, :2] == IGNORED).all() and (ids[:, 0] == 0).all()


def test_words_of_swaps_hold_ten_swaps_and_the_identity():
    ids, _ = word_problem(0, 200, 8, moved=2)
    assert len(set(ids[:, 1:-1].unique().tolist())) == 11


def test_words_may_give_each_element_several_tokens():
    plain, plain_labels = word_problem(0, 5, 4, degree=3)
    ids, labels = word_problem(0, 5, 4, degree=3, tokens_per_element=3)
    assert torch.equal(ids[:, 1:-1:3], plain[:, 1:-1]) and (ids[:, 2] == 7).all()
    assert torch.equal(labels[:, 4::3], plain_labels[:, 2:]) and (labels != IGNORED).sum() == 20


def test_words_are_unique():
    ids, _ = word_problem(0, 36, 2, degree=3)
    assert len(ids.unique(dim=0)) == 36


WRONG = {
    "there is no task": ("sums", {}),
    "too small": ("parity", {"vocab_size": 2}),
    "needs 3 <= min_sequence_length": ("modular_arithmetic", {"min_sequence_length": 1}),
    "max_sequence_length <= context_length": ("parity", {"max_sequence_length": 49}),
}


@pytest.mark.parametrize("message", WRONG)
def test_impossible_requests_are_refused_by_name(message):
    task, arguments = WRONG[message]
    with pytest.raises(ValueError, match=message):
        list(questions(task, **arguments))


@pytest.mark.parametrize("arguments", [(0, 37, 2, 3), (0, 1, 0, 3)])
def test_impossible_words_are_refused(arguments):
    with pytest.raises(ValueError, match="words"):
        word_problem(*arguments)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    task=st.sampled_from(sorted(TASKS)),
    seed=st.integers(0, 99),
    shortest=st.integers(3, 10),
    more=st.integers(0, 20),
    spare=st.integers(0, 9),
)
def test_every_sequence_keeps_its_bounds(task, seed, shortest, more, spare):
    longest = max(shortest + more, 5)
    ids, labels = samples(task, seed, 10, longest + spare, shortest, longest)
    places = (labels != IGNORED).nonzero()[:, 1]
    assert ids.shape == (10, longest + spare) and len(places) == 10 and places.max() < longest
