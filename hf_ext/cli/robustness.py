"""`hf-ext robustness MODEL`: what is left of an image classifier's accuracy, and of its exits, under attack."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import show_table
from .run import find_model

if TYPE_CHECKING:
    import torch

COLUMNS = ("attack", "epsilon", "accuracy")
EXIT_COLUMNS = (*COLUMNS, "without exits", "mean exit", "mean cost", "efficacy")


def command(
    model: Annotated[
        str, typer.Argument(metavar="SLUG|FOLDER|REPO", help="An image classifier, with exits or without.")
    ],
    given: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            help="A folder with one folder of pictures for each label, or an .npz with `images` and `labels`; "
            "scikit-learn's digits when left out.",
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="pgd, pgd_dynamic, pgd_avg, pgd_max, slowdown, early; repeatable. All that apply by default."
        ),
    ] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Largest change of a pixel in [0, 1]; repeatable. 2, 4 and 8 over 255.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each attack, a quarter of epsilon long.")] = 10,
    limit: Annotated[int, typer.Option(min=1, help="Look at so many pictures at most.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Attack an image classifier and show what accuracy is left, and for one with exits what they still save."""
    from hf_ext.measuring import load
    from hf_ext.robustness import robustness_report

    loaded = load(find_model(model))
    if loaded.task != "image-classification":
        raise ValueError(f"'{model}' holds a {type(loaded.model).__name__}; attacks are for image classifiers")
    images, labels = read_samples(given, loaded.model.config, limit)
    classifier, pixels = in_pixels(loaded.model, loaded.processor, images)
    budget = {"epsilons": epsilon} if epsilon else {}
    lines = robustness_report(classifier, pixels, labels, attack or None, steps=steps, batch_size=batch_size, **budget)
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
        return
    with_exits = lines[0].mean_exit is not None
    show_table(EXIT_COLUMNS if with_exits else COLUMNS, [cells(line) for line in lines])


def cells(line: Any) -> list[str]:
    row = [line.attack, f"{line.epsilon:.4f}", f"{line.accuracy:.1%}"]
    if line.mean_exit is None:
        return row
    return [
        *row,
        f"{line.static_accuracy:.1%}",
        f"{line.mean_exit:.2f}",
        f"{line.mean_cost:.1%}",
        f"{line.efficacy:.2f}",
    ]


def read_samples(given: str | None, config: Any, limit: int) -> tuple[list[Any], torch.Tensor]:
    """Pictures (PIL) and their classes."""
    import torch

    if given is None:
        if config.num_labels != 10:
            raise ValueError(
                f"The model knows {config.num_labels} classes; give pictures and their labels with --input"
            )
        from hf_ext.data.digits import handwritten_digits

        _, (images, labels) = handwritten_digits()
        images, labels = images[:limit], labels[:limit]
    else:
        from hf_ext.data.pictures import read_classified

        images, labels = read_classified(given, config, limit)
    return images, torch.tensor(labels)


def in_pixels(model: Any, processor: Any, images: list[Any]) -> tuple[Any, torch.Tensor]:
    """A classifier that takes images in [0, 1], and the images as its processor sizes them."""
    from hf_ext.models.dynn import MultiExitImageProcessor
    from hf_ext.robustness import PixelSpace

    if processor is None:
        size = getattr(model.config, "image_size", None)
        if not isinstance(size, int):
            raise ValueError("The model's folder holds no image processor, and its configuration no `image_size`")
        processor = MultiExitImageProcessor(size={"height": size, "width": size})
    pixels = processor(images, return_tensors="pt", do_rescale=True, do_normalize=False)["pixel_values"].clamp(0, 1)
    if getattr(processor, "do_normalize", False):
        model = PixelSpace(model, processor.image_mean, processor.image_std)
    return model, pixels
