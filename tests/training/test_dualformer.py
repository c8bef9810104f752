"""Structured trace dropping: what each level leaves out, how often it is drawn, and the batches made of it."""

import random

import pytest
import torch

from hf_ext.data.maze import maze_tasks
from hf_ext.models.dualformer import DualformerTokenizer
from hf_ext.training.dualformer import LEVELS, DualformerCollator, TraceDropping

TEXT = "create 0 0 c0 c2 close 0 0 c0 c2 create 1 0 c1 c1 close 1 0 c1 c1 create 1 1 c2 c0 close 1 1 c2 c0"
TRACE = TEXT.split(" ")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("no_close", "create 0 0 c0 c2 create 1 0 c1 c1 create 1 1 c2 c0"),
        ("no_cost", "create 0 0 create 1 0 create 1 1"),
        ("no_trace", ""),
    ],
)
def test_level_leaves_out_what_its_name_says(level, expected):
    assert TraceDropping(**{level: 1.0})(TRACE) == expected.split()


@pytest.mark.parametrize(("paper", "words", "fewest", "most"), [(False, 5, 18, 27), (True, 3, 21, 21)])
def test_third_level_keeps_costs_in_the_code_and_drops_them_in_the_paper(paper, words, fewest, most):
    kept = TraceDropping(no_create=1.0, paper_levels=paper, generator=random.Random(0))(TRACE * 10)
    assert fewest * words <= len(kept) <= most * words and ("c1" in kept) == (not paper)


def test_without_probabilities_traces_stay_whole():
    assert TraceDropping()(TRACE) == TRACE


def test_mean_length_of_the_mixture_is_the_sum_over_its_levels():
    drop = TraceDropping(no_close=0.25, no_cost=0.25, no_trace=0.25, generator=random.Random(0))
    lengths = [len(drop(TRACE)) for _ in range(4000)]
    assert sum(lengths) / 4000 == pytest.approx(0.25 * (30 + 15 + 9 + 0), rel=0.03)


def test_sokoban_clauses_have_any_length_and_lose_their_costs():
    text = "create worker 1 2 box 2 2 c0 c4 close worker 1 2 box 2 2 c0 c4 create worker 1 3 c1 c4"
    drop = TraceDropping.sokoban(**dict.fromkeys(LEVELS, 0.0) | {"no_cost": 1.0})
    assert " ".join(drop(text.split())) == "create worker 1 2 box 2 2 create worker 1 3"


@pytest.mark.parametrize("domain", ["maze", "sokoban"])
def test_sokoban_keeps_its_first_draw_and_mazes_draw_each_time(domain):
    task = next(maze_tasks(1, 5, 5))
    drop = TraceDropping(no_close=0.5, domain=domain, generator=random.Random(0))
    collator = DualformerCollator(DualformerTokenizer.for_maze(5, 5), drop)
    lengths = {collator([task])["labels"].shape[1] for _ in range(20)}
    assert len(lengths) == {"maze": 2, "sokoban": 1}[domain]


def test_collated_answers_are_shifted_by_one():
    collator = DualformerCollator(DualformerTokenizer.for_maze(5, 5))
    batch = collator(list(maze_tasks(3, 5, 5)))
    real = batch["labels"] != -100
    assert torch.equal(batch["decoder_input_ids"][:, 1:][real[:, 1:]], batch["labels"][:, :-1][real[:, 1:]])
    assert (batch["decoder_input_ids"][:, 0] == 0).all() and batch["attention_mask"].sum(1).min() < batch[
        "input_ids"
    ].shape[1]


@pytest.mark.parametrize("fields", [{"no_close": 0.7, "no_cost": 0.7}, {"no_close": -0.1}, {"domain": "chess"}])
def test_impossible_dropping_is_refused(fields):
    with pytest.raises(ValueError, match=r"probabilities|domain"):
        TraceDropping(**fields)


def test_a_trace_that_opens_otherwise_is_refused():
    with pytest.raises(ValueError, match="create or close"):
        TraceDropping()(["plan", "1", "2"])
