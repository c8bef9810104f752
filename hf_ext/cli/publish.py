"""`hf-ext publish SLUG|FOLDER --repo ORG/NAME`: checks a folder and uploads it to the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hf_ext.catalog import METHODS, get_method

from .output import show_table


def command(
    source: Annotated[str, typer.Argument(metavar="SLUG|FOLDER", help="A method, or a folder with a card.")],
    repo: Annotated[str, typer.Option(help="The repository on the Hub, ORG/NAME; made if it is not there.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and show what would be uploaded.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Publish a model with its card. Nothing is uploaded unless everything passes."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from hf_ext.publishing import publish, stage

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise typer.BadParameter(f"--repo {repo}: {error}") from None
    if repo.count("/") != 1:
        raise typer.BadParameter(f"--repo {repo}: give ORG/NAME")
    folder = METHODS[source].card if source in METHODS else Path(source)
    if not folder.is_dir():
        get_method(source)  # explains an unknown name
        raise ValueError(f"'{source}' has no card yet: there is no folder '{folder}'")
    with tempfile.TemporaryDirectory() as temporary:
        if dry_run:
            show_table(("file", "bytes"), [(upload.path, f"{upload.size:,}") for upload in stage(folder, temporary)])
            print(f"would be uploaded to {repo}")
        else:
            print(f"published: {publish(folder, repo, temporary, private)}")
