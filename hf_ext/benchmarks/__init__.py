"""Ours against the peer a user would pick instead: alternating runs in one process, reported as a ratio.

`benchmarks/<slug>.py` holds `contests(reference) -> Iterable[Contest]`, where `reference` is the folder of a checkout of the
authors' repository, or None. A contest whose peer is not importable is left out with a note, never replaced by a guess.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


@dataclass
class Contest:
    """Two callables that do the same work. `threads` pins torch's thread count; None leaves it as it is. `memory` gives the peak MiB of
    a side where that is not what tensors take in this process."""

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    peer_name: str
    threads: int | None = None
    memory: Callable[[Callable[[], Any]], float] | None = None


@dataclass
class Result:
    """Median seconds of both sides, the spread (half the interquartile range over the median), the ratio peer / ours
    (above 1: ours is faster) and the peak memory that each side allocated on top of what was there, in MiB."""

    name: str
    peer: str
    ours_seconds: float
    peer_seconds: float
    ours_spread: float
    peer_spread: float
    ratio: float
    ours_mib: float
    peer_mib: float
    device: str
    threads: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def contests(slug: str, reference: Path | None = None) -> Iterable[Contest]:
    return import_module(f"hf_ext.benchmarks.{slug}").contests(reference)


def compare(contest: Contest, rounds: int = 7, warmup: int = 2) -> Result:
    """Runs both sides alternately, `rounds` times each after `warmup`, and compares their medians."""
    threads = torch.get_num_threads()
    memory = contest.memory or peak_mib
    if contest.threads:
        torch.set_num_threads(contest.threads)
    try:
        for _ in range(warmup):
            contest.ours()
            contest.peer()
        ours, peer = zip(*((_seconds(contest.ours), _seconds(contest.peer)) for _ in range(rounds)))
        return Result(
            name=contest.name,
            peer=contest.peer_name,
            ours_seconds=statistics.median(ours),
            peer_seconds=statistics.median(peer),
            ours_spread=_spread(ours),
            peer_spread=_spread(peer),
            ratio=statistics.median(peer) / statistics.median(ours),
            ours_mib=memory(contest.ours),
            peer_mib=memory(contest.peer),
            device="cuda" if torch.cuda.is_available() else "cpu",
            threads=torch.get_num_threads(),
        )
    finally:
        torch.set_num_threads(threads)


def _seconds(function: Callable[[], Any]) -> float:
    gc.collect()
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _spread(values: tuple[float, ...]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / statistics.median(values)


def peak_mib(function: Callable[[], Any]) -> float:
    """Peak memory that tensors take during one call beyond what was allocated before, in MiB.

    On CPU the allocator is followed through torch's profiler, so what numpy or C code allocates on its own is not seen.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on standard error otherwise
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    return max(_running_totals(profile), default=0) / 2**20


def _running_totals(profile: torch.profiler.profile) -> Iterator[int]:
    total = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            yield total
