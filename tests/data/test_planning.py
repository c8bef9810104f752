"""Mazes and Sokoban levels: searches, splits, drawings, and what counts as a solution."""

import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data import maze, sokoban
from hf_ext.data.maze import Maze, maze_tasks, read_plan
from hf_ext.data.sokoban import Sokoban, random_level, sokoban_tasks

DRAWING = "S . #\n# . .\n. # G"
LEVEL = "#####\n#@$.#\n#####"


@settings(max_examples=20, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(4, 7), height=st.integers(4, 7))
def test_coins_change_the_trace_and_never_the_length_of_the_path(seed, width, height):
    task = next(iter(maze_tasks(1, width, height, seed=seed)))
    searches = [task.maze.search(random.Random(coin)) for coin in range(3)] + [task.maze.search(deterministic=True)]
    assert {len(search.path) for search in searches} == {task.plan_length}
    assert all(task.maze.judge(search.path) for search in searches)


def test_same_seed_gives_same_tasks():
    assert list(maze_tasks(5, 5, 5, seed=3)) == list(maze_tasks(5, 5, 5, seed=3))


def test_no_layout_is_in_both_splits():
    training, test = ({t.maze.walls for t in maze_tasks(60, 5, 5, held_out=held_out)} for held_out in (False, True))
    assert not training & test


def test_tasks_follow_the_recipe():
    for task in maze_tasks(50, 5, 5):
        assert 6 <= len(task.maze.walls) <= 10 and task.plan_length >= 5


def test_deterministic_search_is_one_search():
    task = next(iter(maze_tasks(1, 6, 6)))
    assert task.maze.search(deterministic=True).steps == task.maze.search(deterministic=True).steps


def test_unreachable_goal_gives_no_path():
    assert Maze.from_drawing("S # G\n. # .").search().path == []


def test_maze_drawing_comes_back():
    assert Maze.from_drawing(DRAWING).draw() == DRAWING


def test_path_is_drawn_between_the_ends():
    task = Maze.from_drawing(DRAWING)
    assert task.draw(task.search(deterministic=True).path) == "S o #\n# o o\n. # G"


@pytest.mark.parametrize(
    ("words", "plan"),
    [
        ("create 0 0 c0 c1 plan 0 0 plan 0 1", [(0, 0), (0, 1)]),
        ("plan 1 2", [(1, 2)]),
        ("create 0 0 c0 c1", None),
        ("plan 0 0 plan 0", None),
        ("plan 0 0 create 0 1", None),
        ("plan 0 c1", None),
    ],
)
def test_plan_is_read_from_the_first_plan_word_on(words, plan):
    assert read_plan(words.split()) == plan


@pytest.mark.parametrize(
    "plan",
    [
        None,
        [(0, 2), (1, 2), (1, 1), (2, 1)],
        [(1, 2), (1, 1), (2, 1), (2, 0)],
        [(0, 2), (1, 1), (2, 1), (2, 0)],
        [(0, 2), (0, 1), (0, 0), (1, 0), (2, 0)],
        [(0, 2), (0, 3), (1, 3), (2, 3), (2, 2), (2, 1), (2, 0)],
    ],
)
def test_wrong_plans_are_judged_wrong(plan):
    assert not Maze.from_drawing(DRAWING).judge(plan)


@pytest.mark.parametrize(
    "text",
    ["", "S .\n.", "S G\nS .", "S x\n. G", ". .\n. G", "SG"],
    ids=["empty", "ragged", "two", "mark", "none", "flat"],
)
def test_bad_maze_drawings_are_refused(text):
    with pytest.raises(ValueError):
        Maze.from_drawing(text)


@pytest.mark.parametrize("numbers", [(4, 4, 0, 0), (4, 4, 0, 16), (4, 4, 0, 1, 1), (1, 4, 0, 1)])
def test_impossible_mazes_are_refused(numbers):
    with pytest.raises(ValueError):
        Maze.from_integers(numbers)


@pytest.mark.parametrize("tasks", [maze_tasks, sokoban_tasks])
def test_no_tasks_are_refused(tasks):
    with pytest.raises(ValueError, match="count"):
        list(tasks(0, 5, 5) if tasks is maze_tasks else tasks(0))


def test_box_is_pushed_onto_its_dock():
    assert Sokoban.from_drawing(LEVEL).moved(1, 0).rows[1] == "# @*#"


def test_worker_stands_on_docks_and_leaves_them():
    level = Sokoban(("#####", "#@. #", "#####"))
    on_dock = level.moved(1, 0)
    assert on_dock.rows[1] == "# + #" and on_dock.moved(1, 0).rows[1] == "# .@#"


@pytest.mark.parametrize("move", [(-1, 0), (0, 1)])
def test_walls_stop_the_worker(move):
    level = Sokoban.from_drawing(LEVEL)
    assert level.moved(*move) is level


def test_two_boxes_cannot_be_pushed():
    level = Sokoban(("######", "#@$$.#", "######"))
    assert level.moved(1, 0) is level


def test_box_in_a_corner_is_hopeless():
    assert Sokoban(("####", "#$ #", "#@.#", "####")).heuristic() == float("inf")


def test_solution_of_a_search_is_a_solution():
    for task in sokoban_tasks(3, width=6, height=6, walls=1, boxes=1):
        assert task.level.judge(read_plan(task.plan))
        assert len(task.plan) // 3 >= task.level.shortest()


def test_search_notes_boxes_off_docks_alone():
    solved = Sokoban.from_drawing(LEVEL).moved(1, 0)
    assert solved.state_words == ["worker", "2", "1"] and "box" in solved.prompt


def test_places_are_sorted_as_strings():
    level = Sokoban(tuple(["#" * 12, "#@" + " " * 9 + "#", "#" * 12]))
    walls = level.words_of("wall", "#")
    assert walls[:9] == "wall 0-0 wall 0-1 wall 0-2".replace("-", " ").split()
    assert [int(x) for x in walls[1::3]][3:5] == [1, 1] and int(walls[1::3][5]) == 10


def test_random_levels_keep_boxes_from_the_border():
    generator = random.Random(0)
    for _ in range(30):
        level = random_level(generator)
        assert all(2 <= x < 5 and 2 <= y < 5 for x, y in level.find("$"))
        assert len(level.find(".")) == len(level.find("$")) == 2 and len(level.find("@")) == 1


def test_long_traces_are_left_out():
    assert all(len(task.reasoning) < 600 for task in sokoban_tasks(2, 600, width=6, height=6, walls=1, boxes=1))


@pytest.mark.parametrize("level", [(), ("###", "##"), ("###", "# #", "###"), ("#x#", "#@#", "###")])
def test_bad_levels_are_refused(level):
    with pytest.raises(ValueError, match="level"):
        Sokoban(level)


def test_too_much_for_a_level_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        random_level(random.Random(0), boxes=9)


def test_words_of_a_search_are_in_the_vocabulary():
    task = next(islice(maze_tasks(1, 5, 4), 1))
    assert set(task.prompt + task.reasoning + task.plan) <= set(maze.maze_words(5, 4))
    level = next(sokoban_tasks(1))
    assert set(level.prompt + level.reasoning + level.plan) <= set(sokoban.sokoban_words())
