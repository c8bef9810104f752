"""From a model card's folder to a repository on the Hub.

What goes up is the folder as it stands, plus `hf_ext_models.py` and the entries that name it (`auto_map`, or `_class_name` of a
Diffusers pipeline), so that `trust_remote_code=True` finds our classes for people who did not `import hf_ext`. The module derives a
class of the same name from each of ours: Transformers marks a class that came from the Hub, and copies its source file on
`save_pretrained`; it then marks the derived one and copies this module, which stands on its own.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .catalog import METHODS

MODULE = "hf_ext_models"
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})\b",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
# Auto class -> the file that names its class, and the key there
PROCESSOR_FILES = {
    "AutoImageProcessor": ("preprocessor_config.json", "image_processor_type"),
    "AutoFeatureExtractor": ("preprocessor_config.json", "feature_extractor_type"),
    "AutoProcessor": ("processor_config.json", "processor_class"),
    "AutoTokenizer": ("tokenizer_config.json", "tokenizer_class"),
}


@dataclass(frozen=True)
class Upload:
    """One file of the repository-to-be."""

    path: str
    size: int


def publish(source: str | Path, repo: str, folder: str | Path, private: bool = False) -> str:
    """Stages `source` in `folder`, checks it and uploads it in one commit; returns the address of that commit."""
    from huggingface_hub import HfApi

    stage(source, folder)
    api = HfApi()
    api.create_repo(repo, private=private or None, exist_ok=True)
    return api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with hf-ext").commit_url


def stage(source: str | Path, folder: str | Path) -> list[Upload]:
    """Copies what is to be published from `source` into the empty `folder`, adds the module for remote code, and checks the result.

    Raises:
        ValueError: lists everything that stands in the way: card metadata, weights in a format that runs code or cannot be read,
            secrets.
    """
    source, folder = Path(source), Path(folder)
    if not source.is_dir():
        raise ValueError(f"There is no folder '{source}' to publish")
    shutil.copytree(
        source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "__pycache__", f"{MODULE}.py")
    )
    if problems := [*card_problems(folder), *file_problems(folder)]:
        raise ValueError(f"'{source}' cannot be published:\n  " + "\n  ".join(problems))
    add_remote_code(folder)
    return [Upload(name, (folder / name).stat().st_size) for name in files(folder)]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def card_problems(folder: Path) -> Iterator[str]:
    """What the Hub, or a reader, would miss in the card's metadata."""
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        yield "README.md: there is no model card"
        return
    try:
        data = ModelCard.load(path).data
    except Exception as error:  # YAML and model-index mistakes surface as many types
        yield f"README.md: the metadata cannot be read: {' '.join(str(error).split())}"
        return
    for field in ("license", "pipeline_tag", "library_name"):
        if not isinstance(data.get(field), str):
            yield f"README.md: the metadata has no {field}"
    if not data.get("tags"):
        yield "README.md: the metadata has no tags"
    for result in data.get("eval_results") or []:
        if not isinstance(result.metric_value, int | float) or result.metric_value != result.metric_value:
            yield f"README.md: the value of {result.metric_name or result.metric_type} is {result.metric_value!r}, not a number"


def file_problems(folder: Path) -> Iterator[str]:
    """Files that must not go up."""
    from safetensors import SafetensorError, safe_open

    names = files(folder)
    if not any(Path(name).name in ("config.json", "model_index.json") for name in names):
        yield "config.json: there is none, so nothing can load this folder"
    for name in names:
        path = folder / name
        if path.suffix.lower() in PICKLES:
            yield f"{name}: loading it can run code; save safetensors instead"
        elif path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                yield f"{name}: {error}"
        else:
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from (f"{name}: holds {what}" for what, pattern in SECRETS.items() if re.search(pattern, text))
            if path.suffix == ".json" and (problem := _json_problem(text)):
                yield f"{name}: {problem}"


def _json_problem(text: str) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON: {error}"
    return ""


def add_remote_code(folder: Path) -> None:
    """Writes the module and the entries that name it, for a folder whose classes are ours."""
    index, parts = _read(folder / "model_index.json"), pipeline_classes(folder)
    maps = auto_maps(folder)
    classes = {cls.__name__: cls for found in (parts, *maps.values()) for cls in found.values()}
    if not classes:
        return
    for part, cls in parts.items():
        index[part] = [MODULE, cls.__name__]
    if parts:
        _write(folder / "model_index.json", index)
    for name, found in maps.items():
        entries = {auto: f"{MODULE}.{cls.__name__}" for auto, cls in found.items()}
        if "AutoTokenizer" in entries:
            entries["AutoTokenizer"] = [entries["AutoTokenizer"], None]
        content = _read(folder / name)
        _write(folder / name, content | {"auto_map": content.get("auto_map", {}) | entries})
    # Diffusers looks for the module beside each part, and keeps what it finds under one name: it is the same everywhere
    for place in {folder, *(folder / part for part in parts if part != "_class_name")}:
        (place / f"{MODULE}.py").write_text(remote_module(classes))


def pipeline_classes(folder: Path) -> dict[str, type]:
    """Key of model_index.json -> our class: the pipeline itself (`_class_name`) and its parts."""
    index = _read(folder / "model_index.json")
    found = {
        part: getattr(import_module(value[0]), value[1])
        for part, value in index.items()
        if isinstance(value, list) and len(value) == 2 and str(value[0]).startswith("hf_ext.")
    }
    for method in METHODS.values():
        if method.ready and index and method.classes.get("DiffusionPipeline") == index.get("_class_name"):
            found["_class_name"] = method.load(index["_class_name"])
    return found


def auto_maps(folder: Path) -> dict[str, dict[str, type]]:
    """File name -> Auto class -> our class, for the JSON files of `folder` that name a class of ours."""
    maps = {}
    if found := model_classes(_read(folder / "config.json")):
        maps["config.json"] = found
    methods = {
        (auto, name): method for method in METHODS.values() if method.ready for auto, name in method.classes.items()
    }
    for auto, (file, key) in PROCESSOR_FILES.items():
        name = _read(folder / file).get(key)
        if method := methods.get((auto, name)):
            maps.setdefault(file, {})[auto] = method.load(name)
    return maps


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_classes(config: dict[str, Any]) -> dict[str, type]:
    """Auto class -> our class, for everything that is registered under the model type of a config.json."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        return {}
    config_class = CONFIG_MAPPING[config["model_type"]]
    found = {
        name: auto._model_mapping.get(config_class, None)
        for name, auto in vars(modeling_auto).items()
        if isinstance(auto, type) and getattr(auto, "_model_mapping", None) is not None
    }
    ours = {auto: cls for auto, cls in found.items() if cls is not None and cls.__module__.startswith("hf_ext.")}
    return {"AutoConfig": config_class} | ours if config_class.__module__.startswith("hf_ext.") else {}


def remote_module(classes: dict[str, type]) -> str:
    """The source of the module that a published folder carries."""
    lines = ['"""Finds the classes of this model for `trust_remote_code=True`; needs `pip install hf-ext`."""', ""]
    places = {name: cls.__module__.rpartition(".") for name, cls in classes.items()}
    lines += sorted({f"from {package} import {module}" for package, _, module in places.values()})
    for name, (_, _, module) in places.items():
        lines += ["", "", f"class {name}({module}.{name}): ..."]
    return "\n".join(lines) + "\n"
