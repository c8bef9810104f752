"""`hf-ext run SLUG|FOLDER|REPO --input ...`: one model on one input, through the pipeline of its task."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_ext.catalog import METHODS, Method, get_method
from hf_ext.files import existing_file

from .options import parse_options


@dataclass(frozen=True)
class Task:
    """How one pipeline task meets the terminal.

    Attributes:
        read: what stands after `--input` -> what the pipeline takes.
        show: the pipeline's result -> text for the terminal.
        save: the pipeline's result -> a file, in the format that its suffix names.
        suffix: of the file that is written when `--output` is not given; "" prints instead.
    """

    read: Callable[[str], Any]
    save: Callable[[Any, Path], None]
    show: Callable[[Any], str] = str
    suffix: str = ""


def command(
    source: Annotated[
        str, typer.Argument(metavar="SLUG|FOLDER|REPO", help="A method with a shipped checkpoint, or a model.")
    ],
    given: Annotated[str, typer.Option("--input", "-i", help="A file, a URL, or the text itself.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
    task: Annotated[str | None, typer.Option(help="The pipeline task, where the model does not say.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="name=value for the pipeline's call; repeatable.")] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Image file to write: where on the picture a classifier looks.")
    ] = None,
) -> None:
    """Run a model on an input, and print or save the result."""
    options = parse_options(option or [])
    folder = find_model(source)
    name = task or find_task(source, folder)
    if name not in TASKS:
        raise ValueError(
            f"`hf-ext run` does not serve the task '{name}', only {', '.join(TASKS)}; name one with --task"
        )
    if explain and name != "image-classification":
        raise ValueError(f"--explain shows where an image classifier looks; the task here is '{name}'")
    with tempfile.TemporaryDirectory() as scratch:
        content = TASKS[name].read(fetch(given, Path(scratch)) if is_url(given) else given)
        pipeline = load_pipeline(name, folder)
        result = pipeline(content, **options)
    if output is None and TASKS[name].suffix:
        output = Path(f"{METHODS[source].slug if source in METHODS else folder.name}{TASKS[name].suffix}")
    if output is None:
        print(TASKS[name].show(result))
    else:
        save(result, output, TASKS[name].save)
        print(f"written to {output}")
    if explain:
        from .explain import explain as explained

        save(explained(pipeline.model, pipeline.image_processor, content), explain, save_image)
        print(f"where it looks: {explain}")


def find_model(source: str) -> Path:
    """The folder of a method's shipped checkpoint, a folder, or the local copy of a repository on the Hub."""
    if Path(source).is_dir():
        return Path(source)
    if source not in METHODS and source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return download(source)
    method = get_method(source)
    if method.checkpoint is None:
        raise ValueError(f"{source} ships no checkpoint; {how_to_get_one(method)}")
    return method.checkpoint


def how_to_get_one(method: Method) -> str:
    if not method.ready:
        return "the method is planned and does not work yet"
    return (
        f"train one with `hf-ext reproduce {method.slug}`, or convert the authors' with `hf-ext convert {method.slug} ...`, "
        "and give its folder"
    )


def download(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"]))
    except LocalEntryNotFoundError:
        raise ValueError(f"'{repo}' is on the Hub, which cannot be reached, and there is no copy of it here") from None


def find_task(source: str, folder: Path) -> str:
    """The task of a method; of a folder, what its card says, or what its class does in the catalogue."""
    if source in METHODS:
        return METHODS[source].task
    card = folder / "README.md"
    if card.is_file():
        from huggingface_hub import ModelCard

        if tag := ModelCard.load(card, ignore_metadata_errors=True).data.pipeline_tag:
            return tag
    for name in architectures(folder):
        for method in METHODS.values():
            if name in method.classes.values():
                return method.task
        for ending, task in ENDINGS.items():
            if name.endswith(ending):
                return task
    raise ValueError(f"'{folder}' does not say which task its model is for; name one with --task")


def architectures(folder: Path) -> list[str]:
    """Class names in the folder's config.json or model_index.json."""
    for file, key in (("config.json", "architectures"), ("model_index.json", "_class_name")):
        path = folder / file
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"'{path}' is not JSON: {error}") from None
            if not isinstance(content, dict):
                raise ValueError(f"'{path}' must hold a JSON object")
            names = content.get(key) or []
            return [names] if isinstance(names, str) else names
    raise ValueError(f"'{folder}' holds no model: there is no config.json or model_index.json")


def load_pipeline(task: str, folder: Path) -> Callable[..., Any]:
    if task == "text-to-image":
        from diffusers import DiffusionPipeline

        diffusion = DiffusionPipeline.from_pretrained(folder)
        return lambda prompt, **options: diffusion(prompt, **options).images[0]
    from transformers import pipeline

    return pipeline(task, model=str(folder))


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def fetch(url: str, folder: Path) -> str:
    """The path of a local copy in `folder`; refused where `HF_HUB_OFFLINE` says that there is no network."""
    from urllib.error import URLError
    from urllib.parse import urlsplit
    from urllib.request import urlopen

    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise ValueError(f"'{url}' is a URL, and HF_HUB_OFFLINE says to stay offline; give a file")
    copy = folder / (Path(urlsplit(url).path).name or "input")
    try:
        with urlopen(url, timeout=30) as answer:
            copy.write_bytes(answer.read())
    except URLError as error:
        raise ValueError(f"'{url}' cannot be reached: {error.reason}") from None
    return str(copy)


def read_image(given: str) -> Any:
    from hf_ext.data.pictures import read_picture

    return read_picture(given)


def read_text(given: str) -> str:
    """The text itself, or what stands in the file that it names."""
    is_file = len(given) < 256 and "\n" not in given and Path(given).is_file()
    try:
        text = Path(given).read_text(encoding="utf-8") if is_file else given
    except UnicodeDecodeError:
        raise ValueError(f"'{given}' is not a text file") from None
    if not text.strip():
        raise ValueError("The text is empty")
    return text


def show_classes(result: list[dict[str, Any]]) -> str:
    width = max(len(str(entry["label"])) for entry in result)
    return "\n".join(f"{entry['label']:<{width}}  {entry['score']:.4f}" for entry in result)


def generated(result: list[dict[str, Any]]) -> str:
    return result[0]["generated_text"]


def save_table(result: Any, path: Path) -> None:
    result.to_csv(path)


def save_json(result: Any, path: Path) -> None:
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_image(result: Any, path: Path) -> None:
    result.save(path)


def save(result: Any, path: Path, write: Callable[[Any, Path], None]) -> None:
    """Writes beside `path` and renames, so that an interruption leaves the last good file."""
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder '{path.parent}' to write to")
    with tempfile.TemporaryDirectory(prefix=".hf-ext-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        write(result, temporary)
        os.replace(temporary, path)


def show_plan(result: dict[str, Any]) -> str:
    verdict = "solved" if result["correct"] else "not solved"
    steps = f"{len(result['plan'])} places" if result["plan"] else "no plan"
    return f"{result['drawing']}\n{verdict}: {steps}, after {len(result['reasoning'])} words of trace"


TASKS = {
    "image-classification": Task(read_image, save_json, show_classes),
    "image-to-image": Task(read_image, save_image, suffix=".png"),
    "path-planning": Task(read_text, save_json, show_plan),
    "text-generation": Task(read_text, lambda result, path: path.write_text(generated(result), "utf-8"), generated),
    "text-to-image": Task(read_text, save_image, suffix=".png"),
    "time-series-forecasting": Task(existing_file, save_table, lambda frame: frame.to_csv().rstrip()),
}
# what the name of an upstream class says about its task
ENDINGS = {
    "ForImageClassification": "image-classification",
    "ForImageSuperResolution": "image-to-image",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForPrediction": "time-series-forecasting",
}
