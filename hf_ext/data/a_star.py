"""A* that notes what it does: the traces that Searchformer (arXiv 2402.14083) and Dualformer (arXiv 2410.09918) learn from."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

State = TypeVar("State", bound=Hashable)


class Step(NamedTuple):
    """One line of a trace: a state is created or closed, with its cost so far and the heuristic's guess of the rest."""

    action: str
    state: Hashable
    cost: int
    heuristic: int


@dataclass
class Search(Generic[State]):
    """`steps`, and the states from start to goal; `path` is empty where the goal cannot be reached."""

    steps: list[Step]
    path: list[State]


@dataclass(eq=False)
class Node:
    state: Hashable
    cost: int
    heuristic: int
    parent: Node | None
    before: Callable[[Node, Node], bool]

    def __lt__(self, other: Node) -> bool:
        mine, others = self.cost + self.heuristic, other.cost + other.heuristic
        return self.before(self, other) if mine == others else mine < others

    @property
    def path(self) -> list[Hashable]:
        return ([] if self.parent is None else self.parent.path) + [self.state]


def a_star(
    start: State,
    children: Callable[[State], Iterable[State]],
    heuristic: Callable[[State], float],
    is_goal: Callable[[State], bool],
    order: Callable[[State], int] | None = None,
    generator: random.Random | None = None,
) -> Search[State]:
    """Searches with steps of cost 1.

    Args:
        children: the states one step away, in the order in which they are created.
        heuristic: of the steps that remain; states of infinite heuristic are not created.
        order: among states of equal cost + heuristic the one of smaller number goes first. Where it is None a coin of `generator` decides
            each comparison and children come shuffled, as in the training data of both papers.
        generator: of the coins; a fresh one when None.
    """
    generator = generator or random.Random()

    def before(a: Node, b: Node) -> bool:
        return generator.random() < 0.5 if order is None else order(a.state) < order(b.state)

    first = Node(start, 0, heuristic(start), None, before)
    heap, open_nodes, closed = [first], {start: first}, {}
    steps = [Step("create", start, 0, first.heuristic)]
    while heap:
        node = heapq.heappop(heap)
        del open_nodes[node.state]
        closed[node.state] = node.cost
        steps.append(Step("close", node.state, node.cost, node.heuristic))
        if is_goal(node.state):
            return Search(steps, node.path)
        states = list(children(node.state))
        if order is None:
            generator.shuffle(states)
        for state in states:
            cost, known = node.cost + 1, open_nodes.get(state)
            if (known is not None and known.cost <= cost) or closed.get(state, float("inf")) <= cost:
                continue
            if (guess := heuristic(state)) == float("inf"):
                continue
            if known is not None:
                heap.remove(known)
                heapq.heapify(heap)
            child = open_nodes[state] = Node(state, cost, guess, node, before)
            heapq.heappush(heap, child)
            steps.append(Step("create", state, cost, guess))
    return Search(steps, [])
