"""`hf-ext`: what a user of the package does from a terminal.

Each command is the function `command` of its own module, imported when it is called. An error is one line on standard error and
exit status 1 (bad data, failed work) or 2 (bad usage); `--debug`, anywhere on the line, shows the traceback instead.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import typer
from huggingface_hub.errors import StrictDataclassError
from typer.core import TyperGroup

COMMANDS = {
    "list": "hf_ext.cli.listing",
    "info": "hf_ext.cli.info",
    "run": "hf_ext.cli.run",
    "convert": "hf_ext.cli.convert",
    "compress": "hf_ext.cli.compress",
    "robustness": "hf_ext.cli.robustness",
    "reproduce": "hf_ext.cli.reproduce",
    "bench": "hf_ext.cli.bench",
    "publish": "hf_ext.cli.publish",
    "demo": "hf_ext.cli.demo",
    "doctor": "hf_ext.cli.doctor",
    "build": "hf_ext.cli.build",
    "techniques": "hf_ext.cli.techniques",
    "recommend": "hf_ext.cli.recommend",
}


class Commands(TyperGroup):
    """Looks a command up in `COMMANDS`."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return None
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        module = import_module(COMMANDS[name])
        single.command(name, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(module.command)
        return typer.main.get_command(single)


app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def hf_ext(debug: bool = typer.Option(False, "--debug", help="Show the whole traceback of an error.")):
    """Published methods, usable the way people already use Hugging Face."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        status = (
            app([argument for argument in arguments if argument != "--debug"], "hf-ext", standalone_mode=False) or 0
        )
    except Exception as error:
        status = getattr(error, "exit_code", 1)
        if debug:
            traceback.print_exception(error)
        elif message := describe(error):
            print(f"hf-ext: {message}", file=sys.stderr)
    if status == 130:
        print("hf-ext: interrupted", file=sys.stderr)
    return status


def describe(error: Exception) -> str:
    """What went wrong, for the person who typed the command."""
    if isinstance(error, typer.TyperException):
        return error.format_message()
    message = str(error).strip() or type(error).__name__
    if isinstance(error, StrictDataclassError):  # what a configuration refuses
        return " ".join(message.split())
    if isinstance(error, ValueError | OSError):
        return message
    return f"{type(error).__name__}: {message.splitlines()[0]} (--debug shows where)"
