"""RMT's classifier and its backbone."""

from tests.golden_calls.vision import run_classifier as run

__all__ = ["run"]
