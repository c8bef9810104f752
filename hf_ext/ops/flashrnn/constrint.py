"""ConstrINT (arXiv 2412.07752, section 4): the first integers in a given order that satisfy constraints. FlashRNN picks tile sizes so.

Language: statements end with `;`. A statement is `a == b`, `a == [1, 2, 3]`, `a <= b` or `a % b == 0`, or several of these with `|`
for "or".
Terms are made of names, whole numbers, `+`, `*` and `^` with a number; `%` binds loosest, so `X % A * B == 0` means X % (A * B) == 0, and
round brackets are ignored. Names stand for integers of 1 and more.

A term never falls when a variable grows, so its smallest and largest values follow from those of its variables; that narrows domains, and
backtracking does the rest.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

LARGEST = 2**31 - 1
STATEMENT = re.compile(
    r"(?P<left>[^=<%]+)(?:%(?P<divisor>[^=<%]+)==0|==\[(?P<values>[\d,]+)\]|(?P<relation>==|<=)(?P<right>[^=<%]+))"
)
FACTOR = re.compile(r"(?P<base>[A-Za-z_]\w*|\d+)(?:\^(?P<power>\d+))?")

Domains = Mapping[str, Sequence[int]]  # rising: ranges or lists


@dataclass(frozen=True)
class Term:
    """A sum of products of (name or number, power)."""

    products: tuple[tuple[tuple[str | int, int], ...], ...]

    @classmethod
    def parse(cls, text: str) -> Term:
        return cls(tuple(tuple(map(_parse_factor, product.split("*"))) for product in text.split("+")))

    @property
    def names(self) -> set[str]:
        return {base for product in self.products for base, _ in product if isinstance(base, str)}

    def value(self, values: Mapping[str, int]) -> int:
        return sum(
            math.prod((base if isinstance(base, int) else values[base]) ** power for base, power in product)
            for product in self.products
        )

    def bounds(self, domains: Domains) -> tuple[int, int]:
        return tuple(self.value({name: domains[name][end] for name in self.names}) for end in (0, -1))


def _parse_factor(text: str) -> tuple[str | int, int]:
    factor = FACTOR.fullmatch(text)
    if factor is None:
        raise ValueError(f"{text!r} is neither a name nor a number, with a power or without")
    base = factor["base"]
    return int(base) if base.isdigit() else base, int(factor["power"] or 1)


@dataclass(frozen=True)
class Relation:
    """left <= right, left == right, left in values, or left a multiple of right"""

    kind: str
    left: Term
    right: Term | None = None
    values: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Relation:
        found = STATEMENT.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is none of a == b, a == [1, 2], a <= b and a % b == 0")
        left = Term.parse(found["left"])
        if found["values"]:
            return cls("in", left, values=tuple(sorted(map(int, found["values"].split(",")))))
        if found["divisor"]:
            return cls("%", left, Term.parse(found["divisor"]))
        return cls(found["relation"], left, Term.parse(found["right"]))

    @property
    def names(self) -> set[str]:
        return self.left.names | (self.right.names if self.right else set())

    def possible(self, domains: Domains) -> bool:
        """Whether the bounds leave room; the truth where every domain is one value."""
        low, high = self.left.bounds(domains)
        if self.kind == "in":
            return any(low <= value <= high for value in self.values)
        other_low, other_high = self.right.bounds(domains)
        if self.kind == "%":
            fixed = low == high and other_low == other_high
            return low % other_low == 0 if fixed else other_low <= high
        return low <= other_high and (self.kind == "<=" or other_low <= high)

    def narrow(self, domains: dict[str, Sequence[int]]) -> bool:
        """Cuts off ends of domains that are not possible; whether it did."""
        changed = False
        if self.kind == "in" and self.left.products == (((next(iter(self.names), ""), 1),),):
            (name,) = self.names
            kept = [value for value in self.values if value in domains[name]]
            changed, domains[name] = len(kept) < len(domains[name]), kept
        pairs = {"<=": [(self.left, self.right)], "==": [(self.left, self.right), (self.right, self.left)]}
        for smaller, larger in pairs.get(self.kind, ()):
            for name in smaller.names ^ larger.names:
                domain = domains[name]
                if name in smaller.names:
                    least = partial(_with, smaller, domains, name, 0)
                    domains[name] = domain[: bisect_right(domain, larger.bounds(domains)[1], key=least)]
                else:
                    most = partial(_with, larger, domains, name, 1)
                    domains[name] = domain[bisect_left(domain, smaller.bounds(domains)[0], key=most) :]
                if not domains[name]:
                    return True
                changed |= len(domains[name]) < len(domain)
        return changed


def _with(term: Term, domains: Domains, name: str, end: int, value: int) -> int:
    """The smallest (end 0) or largest (end 1) value of a term whose variable `name` is `value`"""
    return term.bounds({**domains, name: [value]})[end]


def parse(text: str) -> list[list[Relation]]:
    """The statements, each a list of alternatives.

    Raises:
        ValueError: a statement that is not of the language.
    """
    statements = re.sub(r"[\s()]", "", text).split(";")
    return [[Relation.parse(part) for part in statement.split("|")] for statement in statements if statement]


def solve(
    constraints: str, variables: Sequence[str], largest_first: Sequence[bool], num_solutions: int = 1
) -> list[tuple[int, ...]]:
    """The first solutions, each the values of `variables` in that order.

    Args:
        constraints: statements as above.
        variables: fixed in this order; names that only the constraints have come after them.
        largest_first: for each variable, whether its largest value is tried first, or its smallest.
        num_solutions: how many to look for, at most.

    Raises:
        ValueError: a statement that is not of the language, a variable that no statement names, or lists of unequal length.
    """
    statements = parse(constraints)
    names = {name for statement in statements for relation in statement for name in relation.names}
    if unknown := [name for name in variables if name not in names]:
        raise ValueError(f"no constraint names {', '.join(unknown)}; they name {', '.join(sorted(names))}")
    if len(variables) != len(largest_first) or num_solutions < 1:
        raise ValueError(
            f"largest_first needs one entry for each of {len(variables)} variables and num_solutions must be at least 1; "
            f"got {len(largest_first)} and {num_solutions}"
        )
    order = [*zip(variables, largest_first), *((name, False) for name in sorted(names - set(variables)))]
    solutions: list[tuple[int, ...]] = []
    for solution in _search(statements, order, {name: range(1, LARGEST) for name in names}):
        found = tuple(solution[name][0] for name in variables)
        if found not in solutions:
            solutions.append(found)
        if len(solutions) == num_solutions:
            break
    return solutions


def _search(
    statements: list[list[Relation]], order: list[tuple[str, bool]], domains: dict[str, Sequence[int]]
) -> Iterator[Domains]:
    domains = dict(domains)
    if not _propagate(statements, domains):
        return
    if not order:
        yield domains
        return
    (name, largest_first), *rest = order
    for value in reversed(domains[name]) if largest_first else domains[name]:
        yield from _search(statements, rest, {**domains, name: [value]})


def _propagate(statements: list[list[Relation]], domains: dict[str, Sequence[int]]) -> bool:
    """Narrows domains until nothing changes; False where a statement, or a variable, has no possibility left."""
    changed = True
    while changed:
        changed = False
        for statement in statements:
            alive = [relation for relation in statement if relation.possible(domains)]
            if not alive:
                return False
            if len(alive) == 1:
                changed |= alive[0].narrow(domains)
            if not all(domains.values()):
                return False
    return True


__all__ = ["parse", "solve"]
