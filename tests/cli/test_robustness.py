"""`hf-ext robustness`: pictures from a folder, an archive or the digits, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_ext.cli import main
from hf_ext.models.dynn import MultiExitConfig, MultiExitForImageClassification, MultiExitImageProcessor


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A network with exits, ten classes and its processor."""
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    config = MultiExitConfig(image_size=8, hidden_sizes=[4, 8], depths=[1, 1], stem_size=4, exits=[1, 0])
    MultiExitForImageClassification(config).save_pretrained(folder)
    MultiExitImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A ViT whose processor normalizes, with two classes."""
    folder = tmp_path_factory.mktemp("upstream")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, **labels)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for index in range(2):
            Image.new("RGB", (20, 12), (40 * index, 90, 200)).save(tmp_path / label / f"{index}.png")
    return str(tmp_path)


def lines(capsys, *arguments: str) -> list[dict]:
    assert main(["robustness", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_network_with_exits_shows_what_exits_save(digits, capsys):
    assert main(["robustness", digits, "--limit", "8", "--steps", "1", "--epsilon", "0.1"]) == 0
    table = capsys.readouterr().out
    assert "mean exit" in table and "slowdown" in table


def test_pictures_come_from_folders_named_by_labels(upstream, pictures, capsys):
    found = lines(capsys, upstream, "--input", pictures, "--steps", "1", "--epsilon", "0.1")
    assert [line["attack"] for line in found] == ["none", "pgd"]
    assert found[0]["accuracy"] == 0.5 and found[0]["mean_exit"] is None


@pytest.mark.parametrize("scale", [1, 255])
def test_pictures_come_from_an_archive(upstream, tmp_path, capsys, scale):
    pixels = np.random.default_rng(0).random((3, 16, 16)) * scale
    np.savez(tmp_path / "x.npz", images=pixels if scale == 1 else pixels.astype(np.uint8), labels=np.array([0, 1, 1]))
    assert len(lines(capsys, upstream, "--input", str(tmp_path / "x.npz"), "--steps", "1", "--epsilon", "0.1")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--attack", "slowdown"), "'slowdown' attacks exits, and PixelSpace has none"),
        (("--attack", "fgsm"), "There is no attack 'fgsm'"),
        (("--epsilon", "-1"), "must be positive"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(upstream, pictures, capsys, arguments, message):
    assert main(["robustness", upstream, "--input", pictures, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_model_of_other_classes_than_digits_needs_pictures(upstream, capsys):
    assert main(["robustness", upstream]) == 1
    assert "The model knows 2 classes; give pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "must hold `images` and `labels`; it holds x"),
        ({"images": np.zeros((2, 8)), "labels": np.zeros(2)}, "must be (N, height, width)"),
        ({"images": np.full((1, 8, 8), np.nan), "labels": np.zeros(1)}, "must lie in [0, 1]"),
        ({"images": np.zeros((1, 8, 8)), "labels": np.full(1, 7)}, "Labels must be classes from 0 to 1"),
        ({"images": np.zeros((0, 8, 8)), "labels": np.zeros(0)}, "holds no pictures"),
    ],
)
def test_an_archive_that_does_not_fit_is_refused(upstream, tmp_path, capsys, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    assert main(["robustness", upstream, "--input", str(tmp_path / "x.npz")]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_label_is_named(upstream, pictures, tmp_path, capsys):
    (tmp_path / "bird").mkdir()
    assert main(["robustness", upstream, "--input", pictures]) == 1
    assert "'bird' in" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(upstream, capsys):
    assert main(["robustness", upstream, "--input", "nowhere"]) == 1
    assert "There is no folder or .npz file 'nowhere'" in capsys.readouterr().err
