"""Sokoban levels, their A* traces and their words: the second task of Searchformer (arXiv 2402.14083) and Dualformer (arXiv 2410.09918).

A level is drawn as usual: `#` wall, `@` worker, `+` worker on a dock, `$` box, `*` box on a dock, `.` dock, blank floor; the first line is
y = 0. A prompt reads `worker x y box x y ... dock x y ... wall x y ...`, a trace `create|close worker x y box x y ... c<cost> c<heuristic>`
per step with the boxes off docks alone, and a plan `plan x y` per place of the worker.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .a_star import Search, a_star

MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))  # up, down, left, right
WALL, WORKER, WORKER_ON_DOCK, BOX, BOX_ON_DOCK, DOCK, FLOOR = "#@+$*. "
LEAVES = {WORKER: FLOOR, WORKER_ON_DOCK: DOCK, BOX: FLOOR, BOX_ON_DOCK: DOCK}  # what stays where something left
WORKER_ENTERS = {FLOOR: WORKER, DOCK: WORKER_ON_DOCK, BOX: WORKER, BOX_ON_DOCK: WORKER_ON_DOCK}
BOX_ENTERS = {FLOOR: BOX, DOCK: BOX_ON_DOCK}
MARGIN = 2  # cells between the border and what is placed inside
TRIES = 100


def sokoban_words(width: int = 7, height: int = 7, max_cost: int = 40000) -> list[str]:
    """The vocabulary of levels of that size, without bos and eos."""
    if width < 3 or height < 3 or max_cost < 1:
        raise ValueError(f"A level is 3 x 3 or larger and costs 1 or more, got {width} x {height}, max_cost={max_cost}")
    numbers = map(str, range(max(width, height)))
    return [*numbers, *(f"c{cost}" for cost in range(max_cost)), "box", "worker", "dock", "wall", "create", "close", "plan"]  # fmt: skip


@dataclass(frozen=True)
class Sokoban:
    """One state of a level, its lines from y = 0 on.

    Raises:
        ValueError: lines of different lengths, unknown marks, or other than one worker.
    """

    rows: tuple[str, ...]

    def __post_init__(self) -> None:
        cells = "".join(self.rows)
        if len({len(row) for row in self.rows}) != 1 or set(cells) - set("#@+$*. "):
            raise ValueError("A level has equally long lines of # @ + $ * . and blanks")
        if sum(mark in "@+" for mark in cells) != 1:
            raise ValueError("A level has one worker, @ or + where it stands on a dock")

    @classmethod
    def from_drawing(cls, text: str) -> Sokoban:
        return cls(tuple(text.strip("\n").splitlines()))

    def draw(self, path: Sequence[tuple[int, int]] = ()) -> str:
        """The drawing, with `o` on the floor where the worker goes."""
        walked = set(path)
        return "\n".join(
            "".join("o" if mark == FLOOR and (x, y) in walked else mark for x, mark in enumerate(row))
            for y, row in enumerate(self.rows)
        )

    def find(self, marks: str) -> list[tuple[int, int]]:
        """Places (x, y) of any of these marks, line by line"""
        return [(x, y) for y, row in enumerate(self.rows) for x, mark in enumerate(row) if mark in marks]

    def at(self, place: tuple[int, int]) -> str:
        x, y = place
        return self.rows[y][x] if 0 <= y < len(self.rows) and 0 <= x < len(self.rows[0]) else WALL

    @property
    def worker(self) -> tuple[int, int]:
        return self.find("@+")[0]

    @property
    def solved(self) -> bool:
        return not self.find(BOX)

    def moved(self, dx: int, dy: int) -> Sokoban:
        """The state after a move; the same one where a wall or a box that cannot be pushed is in the way."""
        here = self.worker
        ahead, beyond = (here[0] + dx, here[1] + dy), (here[0] + 2 * dx, here[1] + 2 * dy)
        changes = {here: LEAVES[self.at(here)]}
        if self.at(ahead) in (BOX, BOX_ON_DOCK):
            if self.at(beyond) not in BOX_ENTERS:
                return self
            changes[beyond] = BOX_ENTERS[self.at(beyond)]
        elif self.at(ahead) == WALL:
            return self
        changes[ahead] = WORKER_ENTERS[self.at(ahead)]
        return Sokoban(
            tuple("".join(changes.get((x, y), mark) for x, mark in enumerate(row)) for y, row in enumerate(self.rows))
        )

    def children(self) -> list[Sokoban]:
        """One per direction"""
        return [self.moved(*move) for move in MOVES]

    def heuristic(self) -> float:
        """Sum over boxes off docks of the Manhattan distance to the nearest dock without a box; infinite if one can never move again."""
        docks, total = self.find(DOCK + WORKER_ON_DOCK), 0
        for x, y in self.find(BOX):
            stuck = (
                any(self.at((x + dx, y + dy)) == WALL for dx, dy in axis)
                for axis in (((-1, 0), (1, 0)), ((0, -1), (0, 1)))
            )
            if all(stuck) or not docks:
                return float("inf")
            total += min(abs(x - dock_x) + abs(y - dock_y) for dock_x, dock_y in docks)
        return total

    def search(self, generator: random.Random | None = None) -> Search[Sokoban]:
        """A* with coins among equals. The heuristic may overrate states in which a box stands on the dock that another needs."""
        return a_star(self, Sokoban.children, Sokoban.heuristic, lambda state: state.solved, generator=generator)

    def shortest(self) -> int | None:
        """States on a shortest way to a solution, this one included; None where there is none. By breadth-first search."""
        lengths, queue = {self: 1}, deque([self])
        while queue:
            state = queue.popleft()
            if state.solved:
                return lengths[state]
            for child in state.children():
                if child not in lengths and child.heuristic() < float("inf"):
                    lengths[child] = lengths[state] + 1
                    queue.append(child)
        return None

    def judge(self, plan: Sequence[tuple[int, int]] | None) -> bool:
        """Whether a worker that walks these places, the first being where it stands, brings every box to a dock."""
        if not plan or plan[0] != self.worker:
            return False
        state = self
        for (x, y), (next_x, next_y) in pairwise(plan):
            move = (next_x - x, next_y - y)
            if move not in MOVES or (state := state.moved(*move)).worker != (next_x, next_y):
                return False
        return state.solved

    @property
    def prompt(self) -> list[str]:
        groups = (("worker", "@+"), ("box", "$*"), ("dock", ".+*"), ("wall", "#"))
        return [word for name, marks in groups for word in self.words_of(name, marks)]

    def words_of(self, name: str, marks: str) -> list[str]:
        """`name x y` of every such place, in the order of the strings "x-y" """
        places = sorted(self.find(marks), key=lambda place: f"{place[0]}-{place[1]}")
        return [word for place in places for word in (name, *map(str, place))]

    @property
    def state_words(self) -> list[str]:
        return [*self.words_of("worker", "@+"), *self.words_of("box", BOX)]


def step_words(action: str, state: Sokoban, cost: int, heuristic: int) -> list[str]:
    return [action, *state.state_words, f"c{cost}", f"c{heuristic}"]


def reasoning_words(search: Search[Sokoban]) -> list[str]:
    return [word for step in search.steps for word in step_words(*step)]


def plan_words(path: Sequence[Sokoban]) -> list[str]:
    return [word for state in path for word in ("plan", *map(str, state.worker))]


@dataclass(frozen=True)
class SokobanTask:
    """A level with the words of a search through it."""

    level: Sokoban
    prompt: list[str]
    reasoning: list[str]
    plan: list[str]


def random_level(generator: random.Random, width: int = 7, height: int = 7, walls: int = 2, boxes: int = 2) -> Sokoban:
    """Walls all around and `walls` inside; boxes, which keep two cells from the border, as many docks, and a worker.

    Raises:
        ValueError: more things than cells.
    """
    inner = [(x, y) for y in range(1, height - 1) for x in range(1, width - 1)]
    middle = [(x, y) for x, y in inner if MARGIN <= x < width - MARGIN and MARGIN <= y < height - MARGIN]
    if boxes < 1 or walls < 0 or walls + boxes > len(middle) or walls + 2 * boxes + 1 > len(inner):
        raise ValueError(
            f"{walls} walls and {boxes} boxes do not fit into a level of {width} x {height}, or there is no box"
        )
    chosen = generator.sample(middle, walls + boxes)
    marks = dict.fromkeys(chosen[:walls], WALL) | dict.fromkeys(chosen[walls:], BOX)
    free = [place for place in inner if place not in marks]
    worker, *docks = generator.sample(free, boxes + 1)
    marks |= {worker: WORKER} | dict.fromkeys(docks, DOCK)
    border = dict.fromkeys(((x, y) for y in range(height) for x in range(width) if (x, y) not in inner), WALL)
    marks |= border
    return Sokoban(tuple("".join(marks.get((x, y), FLOOR) for x in range(width)) for y in range(height)))


def sokoban_tasks(count: int, max_reasoning: int = 10000, seed: int = 0, **sizes: int) -> Iterator[SokobanTask]:
    """Different solvable levels whose trace has fewer than `max_reasoning` words; `sizes` are those of `random_level`."""
    if count < 1:
        raise ValueError(f"`count` must be 1 or more, got {count}")
    generator, seen = random.Random(seed), set()
    while len(seen) < count:
        level = random_level(generator, **sizes)
        search = level.search(generator)
        words = reasoning_words(search)
        if search.path and level not in seen and len(words) < max_reasoning:
            seen.add(level)
            yield SokobanTask(level, level.prompt, words, plan_words(search.path))
