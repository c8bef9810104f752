"""`hf-ext run`: the pipeline of the task, on good and bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_ext.catalog import METHODS
from tests.tiny import TINY


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """An upstream model: `run` serves any folder whose task it knows."""
    folder = tmp_path_factory.mktemp("classifier") / "model"
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(**sizes, intermediate_size=16, num_labels=3)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def writer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer") / "model"
    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer(extra_ids=0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def enlarger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enlarger") / "model"
    torch.manual_seed(0)
    config, _ = TINY["hat"]()
    METHODS["hat"].load("HatForImageSuperResolution")(config).save_pretrained(folder)
    METHODS["hat"].load("HatImageProcessor")().save_pretrained(folder)
    return folder


@pytest.fixture
def picture(here):
    return draw("picture.png", (12, 9))


@pytest.fixture
def history(here):
    rows = np.random.default_rng(0).normal(size=(20, 3))
    np.savetxt("history.csv", rows, delimiter=",", header="a,b,c", comments="")
    return Path("history.csv")


def draw(name, size, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    Image.fromarray(pixels.squeeze() if mode == "L" else pixels, mode).save(name)
    return Path(name)


def test_classifier_prints_classes_and_scores(hf_ext, classifier, picture):
    outcome = hf_ext("run", classifier, "--input", picture)
    assert outcome.status == 0, outcome.err
    scores = [float(line.split()[-1]) for line in outcome.out.splitlines()]
    assert len(scores) == 3 and sum(scores) == pytest.approx(1, abs=1e-3)


def test_text_generation_continues_the_text(hf_ext, writer):
    outcome = hf_ext("run", writer, "--input", "once", "--option", "max_new_tokens=4", "--option", "do_sample=false")
    assert outcome.status == 0 and outcome.out.startswith("once"), outcome.err


def test_forecaster_prints_a_table_or_writes_it(hf_ext, forecaster, history, here):
    printed = hf_ext("run", forecaster, "--input", history)
    assert printed.status == 0, printed.err
    assert hf_ext("run", forecaster, "--input", history, "--output", "forecast.csv").status == 0
    lines = Path("forecast.csv").read_text().splitlines()
    assert len(lines) == 9 and lines[0].endswith("a,b,c")
    assert printed.out.splitlines() == lines


def test_enlarger_saves_a_larger_picture(hf_ext, enlarger, picture):
    outcome = hf_ext("run", enlarger, "--input", picture, "--output", "larger.png")
    assert outcome.status == 0, outcome.err
    assert Image.open("larger.png").size == (24, 18)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2)], ids=str)
@pytest.mark.parametrize("model", ["classifier", "enlarger"])
def test_odd_pictures_run(hf_ext, request, here, model, size):
    outcome = hf_ext("run", request.getfixturevalue(model), "--input", draw("odd.png", size), "--output", "result.png")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_pictures_of_other_channels_are_read_as_colour(hf_ext, enlarger, here, mode):
    outcome = hf_ext("run", enlarger, "--input", draw("other.png", (8, 8), mode), "--output", "result.png")
    assert outcome.status == 0 and Image.open("result.png").mode == "RGB"


def test_colour_picture_for_a_model_of_one_channel_is_one_error(hf_ext, picture, here):
    config, _ = TINY["hat"]()
    config.num_channels = 1
    METHODS["hat"].load("HatForImageSuperResolution")(config).save_pretrained("grey")
    METHODS["hat"].load("HatImageProcessor")().save_pretrained("grey")
    outcome = hf_ext("run", "grey", "--input", picture, "--output", "result.png")
    assert outcome.status == 1 and "(batch, 1, height, width)" in outcome.error
    assert not Path("result.png").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no file"),
        (b"", "is empty"),
        (b"not a picture", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture"),
    ],
    ids=["missing", "empty", "text", "truncated"],
)
def test_bad_picture_is_one_error(hf_ext, classifier, here, content, message):
    if content is not None:
        Path("bad.png").write_bytes(content)
    outcome = hf_ext("run", classifier, "--input", "bad.png")
    assert outcome.status == 1 and message in outcome.error


BAD_SERIES = {
    "missing": None,
    "empty": "",
    "only a header": "a,b,c\n",
    "too short": "a,b,c\n" + "1,2,3\n" * 3,
    "words": "a,b,c\n" + "x,y,z\n" * 20,
    "all NaN": "a,b,c\n" + "nan,1,2\n" * 20,
    "infinite": "a,b,c\n" + "inf,1,2\n" * 20,
    "ragged": "a,b,c\n" + "1,2,3,4,5\n1\n" * 20,
}


@pytest.mark.parametrize("kind", BAD_SERIES)
def test_bad_series_is_one_error_and_leaves_the_good_forecast(hf_ext, forecaster, here, kind):
    Path("forecast.csv").write_text("the last good one")
    if BAD_SERIES[kind] is not None:
        Path("bad.csv").write_text(BAD_SERIES[kind])
    outcome = hf_ext("run", forecaster, "--input", "bad.csv", "--output", "forecast.csv")
    assert outcome.status == 1 and outcome.error
    assert Path("forecast.csv").read_text() == "the last good one"


def test_empty_text_is_one_error(hf_ext, writer, here):
    assert "The text is empty" in hf_ext("run", writer, "--input", "  ").error


def test_url_offline_is_refused_in_one_sentence(hf_ext, classifier):
    outcome = hf_ext("run", classifier, "--input", "https://example.org/cat.png")
    assert outcome.status == 1 and "HF_HUB_OFFLINE" in outcome.error


def test_hub_repository_offline_is_refused_in_one_sentence(hf_ext):
    outcome = hf_ext("run", "nobody/nothing", "--input", "x")
    assert outcome.status == 1 and "cannot be reached" in outcome.error


def test_planned_method_says_that_it_does_not_work_yet(hf_ext):
    method = next(method for method in METHODS.values() if not method.ready)
    assert "planned" in hf_ext("run", method.slug, "--input", "x").error


def test_method_without_weights_says_how_to_get_them(hf_ext, cards):
    error = hf_ext("run", "itransformer", "--input", "x").error
    assert "hf-ext reproduce itransformer" in error and "hf-ext convert itransformer" in error


def test_slug_runs_the_shipped_checkpoint(hf_ext, cards, forecaster, history):
    cards.mkdir()
    (cards / "itransformer").symlink_to(forecaster)
    assert hf_ext("run", "itransformer", "--input", history).status == 0


def test_unknown_source_suggests_a_method(hf_ext):
    assert "did you mean itransformer" in hf_ext("run", "itransformr", "--input", "x").error


def test_folder_without_model_is_one_error(hf_ext, here):
    assert "holds no model" in hf_ext("run", here, "--input", "x").error


def test_task_that_is_not_served_is_one_error(hf_ext, classifier):
    assert "does not serve" in hf_ext("run", classifier, "--input", "x", "--task", "fill-mask").error


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_corrupt_model_is_one_error(hf_ext, classifier, picture, here, name):
    for path in classifier.iterdir():
        (here / path.name).write_bytes(path.read_bytes())
    (here / name).write_bytes((classifier / name).read_bytes()[:100])
    outcome = hf_ext("run", here, "--input", picture)
    assert outcome.status == 1 and outcome.error


def test_unknown_pipeline_option_is_one_error(hf_ext, forecaster, history):
    assert "nonsense" in hf_ext("run", forecaster, "--input", history, "--option", "nonsense=1").error


def test_output_into_a_missing_folder_is_one_error(hf_ext, forecaster, history):
    assert "There is no folder" in hf_ext("run", forecaster, "--input", history, "-o", "nowhere/x.csv").error
