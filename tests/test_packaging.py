"""The wheel: what is in it, and that it works where this repository is not."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from hf_ext.catalog import METHODS

ROOT = Path(__file__).parent.parent
SOURCES = ("hf_ext", "pipelines", "convert", "model_cards", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel. It is built from a copy, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.mark.parametrize(
    "package", ["hf_ext", "hf_ext/pipelines", "hf_ext/convert", "hf_ext/model_cards", "hf_ext/cli"]
)
def test_wheel_holds_the_packages(names, package):
    assert f"{package}/__init__.py" in names


def test_wheel_installs_nothing_else_at_the_top(names):
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"hf_ext"}


def test_wheel_holds_every_module(names):
    outside = {"pipelines": "hf_ext/pipelines", "convert": "hf_ext/convert"}
    for folder in ("hf_ext", *outside):
        for path in (ROOT / folder).rglob("*.py"):
            inside = Path(outside.get(folder, folder)) / path.relative_to(ROOT / folder)
            assert inside.as_posix() in names


def test_wheel_holds_the_cards_with_their_weights(names):
    for path in (ROOT / "model_cards").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"hf_ext/{path.relative_to(ROOT).as_posix()}" in names


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel in it; the dependencies are those of this one, our own editable install is not."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    dependencies = Path(next(path for path in sys.path if path.endswith("site-packages")))
    (site / "dependencies.pth").write_text(
        f"{dependencies}\n"
    )  # read as a path only: the .pth files in there are not followed
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin/python",
        "install",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    done = subprocess.run(
        [*install, "--disable-pip-version-check", "--force-reinstall"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(*command):
    """Runs a command away from the repository, in an environment that does not point to it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_command_lists_the_methods(installed):
    assert [entry["slug"] for entry in json.loads(run(installed / "hf-ext", "list", "--json"))] == list(METHODS)


def test_installed_package_is_the_wheel_and_finds_its_cards(installed):
    code = """
import importlib.util, json
from pathlib import Path
import hf_ext, hf_ext.convert, hf_ext.pipelines
from hf_ext.catalog import METHODS
assert importlib.util.find_spec("pipelines") is None and importlib.util.find_spec("convert") is None
print(json.dumps([hf_ext.__file__, [slug for slug, method in METHODS.items() if method.checkpoint]]))
"""
    place, checkpoints = json.loads(run(installed / "python", "-c", code))
    assert Path(place).is_relative_to(installed.parent)
    assert checkpoints == [slug for slug, method in METHODS.items() if method.checkpoint]
