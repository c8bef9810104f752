"""`hf-ext convert`: good checkpoints, bad ones, and interruptions."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForTimeSeriesPrediction, PreTrainedModel

from hf_ext.cli import main
from tests.goldens import FOLDER, call_arguments, read_case


@pytest.fixture(scope="module")
def case():
    return read_case(FOLDER / "itransformer" / "nomarks")


@pytest.fixture
def checkpoint(case, here):
    """The authors' file and its arguments, in the working directory."""
    torch.save(case["state_dict"], "checkpoint.pth")
    Path("arguments.json").write_text(json.dumps(case["arguments"]))
    return case["state_dict"]


@pytest.fixture
def convert(hf_ext):
    return lambda file="checkpoint.pth": hf_ext(
        "convert", "itransformer", file, "--arguments", "arguments.json", "-o", "out"
    )


@pytest.fixture
def good_output(checkpoint, convert):
    """What an earlier conversion left."""
    assert convert().status == 0
    return contents(Path("out"))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_converted_folder_computes_what_the_reference_does(case, checkpoint, convert):
    outcome = convert()
    assert outcome.status == 0 and "ITransformerForPrediction" in outcome.out
    model = AutoModelForTimeSeriesPrediction.from_pretrained("out", attn_implementation="eager")
    with torch.no_grad():
        output = model(**call_arguments(case)).prediction_outputs
    torch.testing.assert_close(output, case["outputs"]["prediction_outputs"], atol=case["atol"], rtol=case["rtol"])


def test_image_model_brings_its_processor(here, hf_ext):
    case = read_case(FOLDER / "crossvit" / "small")
    torch.save(case["state_dict"], "checkpoint.pth")
    Path("arguments.json").write_text(json.dumps(case["arguments"]))
    outcome = hf_ext("convert", "crossvit", "checkpoint.pth", "--arguments", "arguments.json", "-o", "out")
    assert outcome.status == 0, outcome.err
    assert type(AutoImageProcessor.from_pretrained("out")).__name__ == "CrossVitImageProcessor"


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_wrapped_checkpoint_is_unwrapped(checkpoint, convert, wrap):
    torch.save(wrap(checkpoint), "wrapped.pth")
    assert convert("wrapped.pth").status == 0


def test_safetensors_file_converts(checkpoint, convert):
    save_file(checkpoint, "checkpoint.safetensors")
    assert convert("checkpoint.safetensors").status == 0


class RunsCode:
    """Its pickle makes a file when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def truncated(state):
    torch.save(state, "bad.pth")
    content = Path("bad.pth").read_bytes()
    Path("bad.pth").write_bytes(content[: len(content) // 2])


def rename_one(state):
    name = next(iter(state))
    return {name + "x" if key == name else key: tensor for key, tensor in state.items()}


def reshape_one(state):
    name = next(iter(state))
    return state | {name: state[name][..., :-1]}


BAD_CHECKPOINTS = {
    "corrupt": (lambda state: Path("bad.pth").write_bytes(b"not a checkpoint"), "bad.pth"),
    "empty file": (lambda state: Path("bad.pth").write_bytes(b""), "bad.pth"),
    "missing file": (lambda state: None, "There is no checkpoint file"),
    "truncated": (truncated, "cannot be read"),
    "malicious": (lambda state: torch.save({"x": RunsCode()}, "bad.pth"), "refused"),
    "malicious beside tensors": (lambda state: torch.save(state | {"x": RunsCode()}, "bad.pth"), "refused"),
    "no tensors": (lambda state: torch.save({"epoch": 3}, "bad.pth"), "not tensors"),
    "no mapping": (lambda state: torch.save([1, 2], "bad.pth"), "no state dict"),
    "empty": (lambda state: torch.save({}, "bad.pth"), "no state dict"),
    "renamed": (lambda state: torch.save(rename_one(state), "bad.pth"), "missing: "),
    "reshaped": (lambda state: torch.save(reshape_one(state), "bad.pth"), "shape: "),
    "one left out": (lambda state: torch.save(dict(list(state.items())[1:]), "bad.pth"), "missing: "),
    "one too many": (lambda state: torch.save(state | {"extra": torch.ones(2)}, "bad.pth"), "left over: extra (2,)"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_bad_checkpoint_is_one_error_and_leaves_the_good_output(checkpoint, good_output, convert, kind):
    spoil, message = BAD_CHECKPOINTS[kind]
    spoil(checkpoint)
    outcome = convert("bad.pth")
    assert outcome.status == 1 and message in outcome.error
    assert contents(Path("out")) == good_output
    assert not Path("code-was-run").exists()


def test_truncated_safetensors_is_one_error(checkpoint, convert):
    save_file(checkpoint, "bad.safetensors")
    content = Path("bad.safetensors").read_bytes()
    Path("bad.safetensors").write_bytes(content[: len(content) // 2])
    assert "bad.safetensors" in convert("bad.safetensors").error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"seq_length": 96}', "seq_length"),
        ('{"seq_len": -1}', "-1"),
        ('{"seq_len": "many"}', "str"),
    ],
)
def test_wrong_arguments_are_one_error(checkpoint, good_output, convert, text, message):
    Path("arguments.json").write_text(text)
    outcome = convert()
    assert outcome.status == 1 and message in outcome.error
    assert contents(Path("out")) == good_output


def test_missing_arguments_file_is_one_error(checkpoint, convert):
    Path("arguments.json").unlink()
    assert "There is no arguments file" in convert().error


def test_method_without_converter_is_one_error(checkpoint, hf_ext):
    assert "has no converter" in hf_ext("convert", "survey_inference", "checkpoint.pth", "-o", "out").error


@pytest.mark.parametrize("name", ["notes.txt", "data.json"])
def test_folder_with_other_things_is_not_replaced(checkpoint, convert, name):
    Path("out").mkdir()
    (Path("out") / name).write_text("{}")
    assert "give a new folder" in convert().error
    assert (Path("out") / name).exists()


def save_half(monkeypatch, then):
    """`save_pretrained` writes one file, then does `then`."""

    def save_pretrained(self, folder, **kwargs):
        (Path(folder) / "config.json").write_text("half")
        then()

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_pretrained)


def interrupt():
    raise KeyboardInterrupt


def run_out_of_space():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("then", "status"), [(interrupt, 130), (run_out_of_space, 1)], ids=["ctrl-c", "full disk"])
def test_interrupted_conversion_leaves_the_good_output(good_output, convert, monkeypatch, here, then, status):
    save_half(monkeypatch, then)
    outcome = convert()
    assert outcome.status == status and "Traceback" not in outcome.err
    assert contents(Path("out")) == good_output
    assert sorted(path.name for path in here.iterdir()) == ["arguments.json", "checkpoint.pth", "out"]


def test_killed_conversion_leaves_the_good_output(good_output, monkeypatch):
    save_half(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    line = ["convert", "itransformer", "checkpoint.pth", "--arguments", "arguments.json", "-o", "out"]
    process = multiprocessing.get_context("fork").Process(target=main, args=(line,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert contents(Path("out")) == good_output
