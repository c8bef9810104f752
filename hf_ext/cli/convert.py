"""`hf-ext convert SLUG FILE --arguments FILE.json -o DIR`: the authors' checkpoint becomes a folder that `from_pretrained` loads."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from hf_ext.catalog import Method, get_method
from hf_ext.files import atomic_folder


def command(
    slug: Annotated[str, typer.Argument(help="The method, as `hf-ext list` names it.")],
    checkpoint: Annotated[Path, typer.Argument(help="The authors' file: .safetensors, .pth, .pt, .ckpt or .bin.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; an earlier result is replaced.")],
    arguments: Annotated[
        Path | None, typer.Option(help="JSON object with the constructor arguments of the reference model.")
    ] = None,
) -> None:
    """Convert the authors' checkpoint. No code from the file is run."""
    method = get_method(slug)
    check_replaceable(output)
    constructor = read_arguments(arguments) if arguments else {}

    from hf_ext.convert import convert_checkpoint, get_converter, read_checkpoint

    converter = get_converter(slug)
    model = convert_checkpoint(slug, read_checkpoint(checkpoint, getattr(converter, "UNWRAP", ())), constructor)
    processor = make_processor(method, converter, constructor)
    with atomic_folder(output) as folder:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__}, {parameters:,} parameters -> {output}")


def make_processor(method: Method, converter: ModuleType, arguments: dict[str, Any]) -> Any:
    """What goes before the model: `processor(arguments)` of the converter where it has one, else the method's default."""
    if hasattr(converter, "processor"):
        return converter.processor(arguments)
    names = [method.classes[auto] for auto in ("AutoImageProcessor", "AutoFeatureExtractor") if auto in method.classes]
    return method.load(names[0])() if names else None


def read_arguments(path: Path) -> dict[str, Any]:
    """The JSON object in a file; a `ValueError` says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"There is no arguments file '{path}'") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must hold a JSON object of constructor arguments, not a {type(content).__name__}")
    return content


def check_replaceable(folder: Path) -> None:
    """Refuses to replace anything that an earlier conversion did not write."""
    if folder.is_file():
        raise ValueError(f"'{folder}' is a file; the result is a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if foreign := sorted(name for name in names if not name.endswith((".json", ".safetensors"))):
        raise ValueError(f"'{folder}' holds other things than a converted model ({foreign[0]}); give a new folder")
    if names and "config.json" not in names:
        raise ValueError(f"'{folder}' is not empty and holds no model; give a new folder")
