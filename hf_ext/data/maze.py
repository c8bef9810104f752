"""Mazes on a grid, their A* traces and their words: the task of Searchformer (arXiv 2402.14083) and Dualformer (arXiv 2410.09918).

A cell is x + y * width. A prompt reads `start x y goal x y wall x y ...`, a trace `create x y c<cost> c<heuristic>` or `close ...` per
step, and a plan `plan x y` per cell of the path, both ends among them.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from .a_star import Search, a_star

MOVES = ((0, 1), (0, -1), (-1, 0), (1, 0))  # up, down, left, right
TRIES = 100
HELD_OUT = 10  # every so many wall layouts belong to the test split
LEGEND = {"wall": "#", "free": ".", "start": "S", "goal": "G", "path": "o"}


def maze_words(width: int, height: int) -> list[str]:
    """The vocabulary of mazes of that size, without bos and eos."""
    if width < 2 or height < 2:
        raise ValueError(f"A maze is 2 x 2 or larger, got {width} x {height}")
    numbers = map(str, range(max(width, height)))
    costs = (f"c{cost}" for cost in range(width * height))
    return [*numbers, *costs, "start", "goal", "wall", "create", "close", "plan"]


@dataclass(frozen=True)
class Maze:
    """A task: from the cell `start` to the cell `goal` around `walls`, cell numbers in order.

    Raises:
        ValueError: a cell outside the grid, start or goal in a wall, or both in the same cell.
    """

    width: int
    height: int
    start: int
    goal: int
    walls: tuple[int, ...]

    def __post_init__(self) -> None:
        maze_words(self.width, self.height)
        object.__setattr__(self, "walls", tuple(sorted(set(self.walls))))
        cells = self.width * self.height
        if outside := [cell for cell in (self.start, self.goal, *self.walls) if not 0 <= cell < cells]:
            raise ValueError(f"The cells of a {self.width} x {self.height} maze are 0 to {cells - 1}, got {outside[0]}")
        if self.start == self.goal or {self.start, self.goal} & set(self.walls):
            raise ValueError(f"Start and goal must be two free cells, got {self.start} and {self.goal}")

    @classmethod
    def from_integers(cls, numbers: Sequence[int]) -> Maze:
        """[width, height, start, goal, walls ...]"""
        width, height, start, goal, *walls = (int(number) for number in numbers)
        return cls(width, height, start, goal, tuple(walls))

    @classmethod
    def from_drawing(cls, text: str) -> Maze:
        """Lines of `#` (wall), `.` (free), one `S` and one `G`, the highest y first; blanks between cells are skipped."""
        rows = [line.replace(" ", "") for line in text.strip().splitlines()]
        width = len(rows[0]) if rows else 0
        if any(len(row) != width for row in rows):
            raise ValueError("The lines of a maze must be equally long")
        cells = "".join(reversed(rows))
        drawn = {LEGEND[kind] for kind in ("wall", "free", "start", "goal")}
        if (strange := sorted(set(cells) - drawn)) or cells.count("S") != 1 or cells.count("G") != 1:
            raise ValueError(
                f"A maze is drawn with # for walls, . for free cells, one S and one G; got {', '.join(strange) or 'other counts'}"
            )
        walls = tuple(cell for cell, mark in enumerate(cells) if mark == "#")
        return cls(width, len(rows), cells.index("S"), cells.index("G"), walls)

    def draw(self, path: Sequence[tuple[int, int]] = ()) -> str:
        """The drawing that `from_drawing` reads, with `o` on the cells (x, y) of a path."""
        marks = [LEGEND["free"]] * (self.width * self.height)
        for x, y in path:
            if 0 <= x < self.width and 0 <= y < self.height:
                marks[x + y * self.width] = LEGEND["path"]
        for cell in self.walls:
            marks[cell] = LEGEND["wall"]
        marks[self.start], marks[self.goal] = LEGEND["start"], LEGEND["goal"]
        rows = (marks[y * self.width : (y + 1) * self.width] for y in reversed(range(self.height)))
        return "\n".join(" ".join(row) for row in rows)

    def place(self, cell: int) -> tuple[int, int]:
        """(x, y) of a cell number"""
        return cell % self.width, cell // self.width

    @cached_property
    def prompt(self) -> list[str]:
        places = (("start", self.start), ("goal", self.goal), *(("wall", cell) for cell in self.walls))
        return [word for name, cell in places for word in (name, *map(str, self.place(cell)))]

    def is_free(self, place: tuple[int, int]) -> bool:
        x, y = place
        return 0 <= x < self.width and 0 <= y < self.height and x + y * self.width not in self._blocked

    @cached_property
    def _blocked(self) -> frozenset[int]:
        return frozenset(self.walls)

    def search(self, generator: random.Random | None = None, deterministic: bool = False) -> Search[tuple[int, int]]:
        """A* with the Manhattan distance; equals go by x + 100000 y, or by coins as in the training data."""
        goal_x, goal_y = self.place(self.goal)
        return a_star(
            self.place(self.start),
            lambda place: [n for dx, dy in MOVES if self.is_free(n := (place[0] + dx, place[1] + dy))],
            lambda place: abs(place[0] - goal_x) + abs(place[1] - goal_y),
            lambda place: place == (goal_x, goal_y),
            order=(lambda place: place[0] + 100000 * place[1]) if deterministic else None,
            generator=generator,
        )

    def judge(self, plan: Sequence[tuple[int, int]] | None) -> bool:
        """Whether the plan leads from start to goal in single steps over free cells."""
        if not plan or plan[0] != self.place(self.start) or plan[-1] != self.place(self.goal):
            return False
        steps = pairwise(plan)
        return all(map(self.is_free, plan)) and all((b[0] - a[0], b[1] - a[1]) in MOVES for a, b in steps)


def reasoning_words(search: Search[tuple[int, int]]) -> list[str]:
    return [
        word
        for step in search.steps
        for word in (step.action, *map(str, step.state), f"c{step.cost}", f"c{step.heuristic}")
    ]


def plan_words(path: Sequence[tuple[int, int]]) -> list[str]:
    return [word for place in path for word in ("plan", *map(str, place))]


def read_plan(words: Sequence[str]) -> list[tuple[int, int]] | None:
    """The cells of an answer, trace or not; None where no plan stands there, or it is not made of `plan x y`."""
    if "plan" not in words:
        return None
    words = words[words.index("plan") :]
    triples = [words[at : at + 3] for at in range(0, len(words), 3)]
    if any(len(t) != 3 or t[0] != "plan" or not (t[1].isdigit() and t[2].isdigit()) for t in triples):
        return None
    return [(int(x), int(y)) for _, x, y in triples]


@dataclass(frozen=True)
class MazeTask:
    """A maze with the words of a search through it; `plan_length` counts the cells of a shortest path."""

    maze: Maze
    prompt: list[str]
    reasoning: list[str]
    plan: list[str]

    @property
    def plan_length(self) -> int:
        return len(self.plan) // 3


def random_maze(width: int, height: int, generator: random.Random) -> MazeTask | None:
    """One layout of 30 to 50 % walls with a task whose shortest path has max(width, height) cells or more; None if none was found."""
    cells = width * height
    indices = list(range(cells))
    generator.shuffle(indices)
    border = generator.randint(3 * (cells // 10), 5 * (cells // 10))
    walls, free = indices[:border], indices[border:]
    for _ in range(TRIES):
        generator.shuffle(free)
        maze = Maze(width, height, free[0], free[1], tuple(walls))
        search = maze.search(generator)
        if len(search.path) >= max(width, height):
            return MazeTask(maze, maze.prompt, reasoning_words(search), plan_words(search.path))
    return None


def maze_tasks(count: int, width: int, height: int, held_out: bool = False, seed: int = 0) -> Iterator[MazeTask]:
    """Different tasks; a layout of walls is either in the training split or, one in ten, held out.

    Raises:
        ValueError: fewer than one, or a size for which there is no vocabulary.
    """
    if count < 1:
        raise ValueError(f"`count` must be 1 or more, got {count}")
    maze_words(width, height)
    generator, seen = random.Random(seed), set()
    while len(seen) < count:
        task = random_maze(width, height, generator)
        if task is None or task.maze in seen:
            continue
        if (zlib.crc32(repr(task.maze.walls).encode()) % HELD_OUT == 0) == held_out:
            seen.add(task.maze)
            yield task
