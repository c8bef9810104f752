"""What the command line's tests share: running it in this process, and small models to run it on."""

from dataclasses import dataclass

import pytest
import torch

from hf_ext.catalog import METHODS, Method
from hf_ext.cli import main
from tests.tiny import TINY


@dataclass
class Outcome:
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line (or the one error with its list) that a failed command prints."""
        lines = [line for line in self.err.splitlines() if line.startswith("hf-ext: ")]
        assert self.status in (1, 2), (self.status, self.out, self.err)
        assert len(lines) == 1 and "Traceback" not in self.err, self.err
        return self.err[self.err.index("hf-ext: ") :]


@pytest.fixture
def hf_ext(capsys):
    """Runs one command line: `hf_ext("list", "--json")`."""

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """An empty place for the cards, instead of the repository's."""
    monkeypatch.setattr(Method, "card", property(lambda method: tmp_path / "cards" / method.slug))
    return tmp_path / "cards"


@pytest.fixture(scope="session")
def forecaster(tmp_path_factory):
    """A folder with a tiny iTransformer: 16 steps of three columns in, 8 out."""
    folder = tmp_path_factory.mktemp("forecaster") / "model"
    torch.manual_seed(0)
    config, _ = TINY["itransformer"]()
    config.num_time_features = 0
    METHODS["itransformer"].load("ITransformerForPrediction")(config).save_pretrained(folder)
    return folder
