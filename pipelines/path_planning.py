"""`pipeline("path-planning")`: a drawn maze or Sokoban level in, the way through it out. Serves Dualformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.pipelines.base import Pipeline

from hf_ext.data.maze import Maze, read_plan
from hf_ext.data.sokoban import Sokoban

Puzzle = Maze | Sokoban


def read_puzzle(drawing: str | Puzzle) -> Puzzle:
    """A drawing with an `S` is a maze, one with a worker (`@`, or `+` on a dock) a Sokoban level."""
    if isinstance(drawing, (Maze, Sokoban)):
        return drawing
    if not isinstance(drawing, str):
        raise ValueError(f"A puzzle is a drawing, a Maze or a Sokoban, got {type(drawing).__name__}")
    return Sokoban.from_drawing(drawing) if set(drawing) & set("@+") else Maze.from_drawing(drawing)


class PathPlanningPipeline(Pipeline):
    """Solves mazes and Sokoban levels.

    ```python
    >>> import hf_ext
    >>> from transformers import pipeline

    >>> planner = pipeline("path-planning", model="model_cards/dualformer")
    >>> answer = planner("S . # .\\n. . # .\\n# . . .\\n. # . G", mode="slow")
    >>> print(answer["drawing"])
    ```

    A puzzle is a drawing (see `Maze.from_drawing` and `Sokoban.from_drawing`), a `Maze` or a `Sokoban`; a list of them gives a list. The
    answer is a dict: `plan` (places [x, y], None where the model wrote none), `correct` (whether the plan solves the puzzle), `reasoning`
    (the words of the trace) and `drawing` (the puzzle with the plan in it).

    Args (of the constructor or of a call):
        mode: "fast", "slow" or "auto", see `DualformerForConditionalGeneration.generate`; further arguments go to `generate` too.

    Raises:
        ValueError: no such puzzle, or one whose words the model's vocabulary lacks, such as a larger maze than it knows.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __call__(self, inputs: str | Puzzle | Sequence[str | Puzzle], **kwargs: Any) -> dict | list[dict]:
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **generation: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, generation, {}

    def preprocess(self, drawing: str | Puzzle) -> dict[str, Any]:
        puzzle = read_puzzle(drawing)
        if unknown := sorted(set(puzzle.prompt) - set(self.tokenizer.get_vocab())):
            raise ValueError(
                f"The model's vocabulary has no {', '.join(unknown)}: it was made for smaller or other puzzles"
            )
        return {"puzzle": puzzle, **self.tokenizer(" ".join(puzzle.prompt), return_tensors="pt")}

    def _forward(self, model_inputs: dict[str, Any], **generation: Any) -> dict[str, Any]:
        puzzle = model_inputs.pop("puzzle")
        return {"puzzle": puzzle, "ids": self.model.generate(**model_inputs, **generation)}

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        puzzle = model_outputs["puzzle"]
        words = self.tokenizer.decode(model_outputs["ids"][0], skip_special_tokens=True).split()
        plan = read_plan(words)
        return {
            "plan": plan,
            "correct": puzzle.judge(plan),
            "reasoning": words[: words.index("plan")] if "plan" in words else words,
            "drawing": puzzle.draw(plan or ()),
        }
