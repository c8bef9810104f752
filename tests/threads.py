"""Several threads in one test, without a trace in the others."""

import os
from collections.abc import Callable

import torch


def with_threads(count: int, function: Callable[[], None]) -> None:
    """Calls `function` in a forked process with so many threads: a pool of them, once started, would hang the processes that later
    tests fork."""
    torch.multiprocessing.start_processes(_run, (count, function), nprocs=1, start_method="fork")


def _run(rank: int, count: int, function: Callable[[], None]) -> None:
    torch.set_num_threads(count)
    function()
    os._exit(0)
