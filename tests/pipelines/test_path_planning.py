"""`pipeline("path-planning")` on the shipped checkpoint, and on what it cannot read."""

import pytest
from transformers import pipeline

from hf_ext.catalog import METHODS
from hf_ext.data.maze import Maze
from hf_ext.data.sokoban import Sokoban
from hf_ext.pipelines.path_planning import read_puzzle

MAZE = ". . . G\n# . # .\n. . . .\nS # . ."


@pytest.fixture(scope="module")
def planner():
    return pipeline("path-planning", model=str(METHODS["dualformer"].card))


def test_modes_differ_in_whether_they_think(planner):
    answers = {mode: planner(MAZE, mode=mode, do_sample=False) for mode in ("fast", "slow")}
    assert not answers["fast"]["reasoning"] and answers["slow"]["reasoning"][0] == "create"


def test_answer_is_judged_and_drawn(planner):
    answer = planner(MAZE, mode="fast", do_sample=False)
    maze = Maze.from_drawing(MAZE)
    assert answer["correct"] == maze.judge(answer["plan"])
    assert answer["drawing"] == maze.draw(answer["plan"] or ())


def test_several_mazes_give_several_answers(planner):
    one, two = planner([MAZE, Maze.from_drawing(MAZE)], mode="fast", do_sample=False)
    assert one == two


@pytest.mark.parametrize(("drawing", "kind"), [(MAZE, Maze), ("#####\n#@$.#\n#####", Sokoban)])
def test_drawing_tells_which_puzzle_it_is(drawing, kind):
    assert isinstance(read_puzzle(drawing), kind)


@pytest.mark.parametrize(
    ("drawing", "message"),
    [(7, "drawing"), ("S . .\n. . .", "one S and one G"), ("S . . . .\n. . . . .\n. . . . G", "vocabulary")],
)
def test_puzzles_that_it_cannot_read_are_refused(planner, drawing, message):
    with pytest.raises(ValueError, match=message):
        planner(drawing)
