"""Writing to disk so that an interruption leaves the last good result."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; it takes the target's place only if the block ends without an error."""
    target = Path(target).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    previous = temporary.with_name(temporary.name + "-previous")
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            target.rename(previous)
        try:
            temporary.rename(target)
        except OSError:
            if previous.exists():
                previous.rename(target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def replaced_files(target: str | Path) -> Iterator[Path]:
    """Yields an empty folder; its files replace those of the same name in `target` if the block ends without an error."""
    target = Path(target).resolve()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target) as temporary:
        yield Path(temporary)
        for path in sorted(Path(temporary).iterdir()):
            os.replace(path, target / path.name)


def write_text(path: str | Path, text: str) -> None:
    """Replaces a text file in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def existing_file(given: str | Path) -> str | Path:
    """The path, which is a file and has something in it; a ValueError that names it otherwise."""
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"There is no file '{given}'")
    if not path.stat().st_size:
        raise ValueError(f"'{given}' is empty")
    return given
