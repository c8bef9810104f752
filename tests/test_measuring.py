"""Data files for any model, and what a model costs and how good it is."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    ByT5Tokenizer,
    ViTConfig,
    ViTImageProcessorPil,
)

from hf_ext.measuring import Loaded, auto_class, effects, load, quality, read_batches, sample_batch
from hf_ext.surgery import LlmDrop, apply
from tests.surgery.bases import BASES, build

TOKENIZER = ByT5Tokenizer(extra_ids=0)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def language_model():
    return Loaded(build("llama"), TOKENIZER, "text-generation")


@pytest.fixture
def text_classifier():
    config = BertConfig(**SMALL, vocab_size=300, num_labels=2, id2label={0: "bad", 1: "good"})
    return Loaded(AutoModelForSequenceClassification.from_config(config).eval(), TOKENIZER, "text-classification")


@pytest.fixture
def image_classifier():
    config = ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=2, id2label={0: "cat", 1: "dog"})
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    return Loaded(AutoModelForImageClassification.from_config(config).eval(), processor, "image-classification")


def test_running_text_is_cut_into_windows_of_the_models_length(tmp_path, language_model):
    (tmp_path / "a.txt").write_text("x" * 300)
    (batch,) = read_batches(tmp_path / "a.txt", language_model)
    assert batch["input_ids"].shape == (4, 64) and torch.equal(batch["labels"], batch["input_ids"])
    assert len(read_batches(tmp_path / "a.txt", language_model, batch_size=1, limit=3)) == 3


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_labelled_text_takes_names_and_numbers_of_classes(tmp_path, text_classifier, name):
    rows = [{"text": "fine, really", "label": "good"}, {"text": "no", "label": 0}, {"text": "hm", "label": "1"}]
    lines = {
        "a.csv": 'text,label\n"fine, really",good\nno,0\nhm,1\n',
        "a.jsonl": "\n".join(map(json.dumps, rows)),
    }
    (tmp_path / name).write_text(lines[name])
    first, second = read_batches(tmp_path / name, text_classifier, batch_size=2)
    assert first["labels"].tolist() == [1, 0] and second["labels"].tolist() == [1]
    assert first["attention_mask"].sum(1).tolist() == [13, 3]
    assert 0 <= quality(text_classifier, [first, second])[1] <= 1


def test_pictures_come_from_a_folder_for_each_class_or_an_array_file(tmp_path, image_classifier):
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("RGB", (9, 9), (index, 0, 0)).save(tmp_path / name / f"{index}.png")
    batches = read_batches(tmp_path, image_classifier, batch_size=4)
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 1, 0, 1, 0, 1]
    (some,) = read_batches(tmp_path, image_classifier, limit=2)
    assert some["labels"].tolist() == [0, 1] and some["pixel_values"].shape == (2, 3, 8, 8)
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 9, 9), np.uint8), labels=np.array([1, 0, 1]))
    (batch,) = read_batches(tmp_path / "a.npz", image_classifier)
    assert batch["labels"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("model", "name", "content", "message"),
    [
        ("language_model", "a.txt", b"short", "shorter than one window of 64 tokens"),
        ("language_model", "a.txt", b"\xff\xfe\xfa", "not a text file"),
        ("language_model", "missing.txt", None, "There is no"),
        ("text_classifier", "a.txt", b"x", ".csv or .jsonl"),
        ("text_classifier", "a.csv", b"text,class\na,1\n", "columns text and label"),
        ("text_classifier", "a.csv", b"text,label\na,7\n", "label '7'; the model knows ..bad., .good.."),
        ("text_classifier", "a.csv", b"text,label\n", "holds no data"),
        ("image_classifier", "a.png", b"x", "no folder or .npz file"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_what_is_wrong(tmp_path, request, model, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_batches(tmp_path / name, request.getfixturevalue(model))


def test_data_for_a_model_without_tokenizer_is_refused(tmp_path, language_model):
    (tmp_path / "a.txt").write_text("x" * 300)
    language_model.processor = None
    with pytest.raises(ValueError, match="comes without tokenizer"):
        read_batches(tmp_path / "a.txt", language_model)


@pytest.mark.parametrize("base", BASES)
def test_a_folder_is_loaded_by_the_class_that_saved_it(base, tmp_path):
    model = build(base)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.model) is type(model) and loaded.processor is None
    assert auto_class(loaded.model.config).__name__ == BASES[base][0]
    loaded.model(**sample_batch(loaded, batch_size=2))


def test_a_base_model_has_no_task(tmp_path):
    model = build("bert").bert
    model.save_pretrained(tmp_path)
    assert type(load(tmp_path).model) is type(model) and load(tmp_path).task == ""


def test_perplexity_is_that_of_the_loss(language_model):
    ids = torch.randint(3, 64, (4, 20), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": part, "labels": part} for part in ids.split(2)]
    name, value = quality(language_model, batches)
    loss = language_model.model(ids, labels=ids).loss.item()
    assert name == "perplexity" and math.isclose(value, math.exp(loss), rel_tol=1e-5)


def test_effects_compare_two_models_in_every_measure(tmp_path, language_model):
    smaller = apply(language_model.model, LlmDrop(attention=[1], mlp=[1, 2]))
    folders = tmp_path / "before", tmp_path / "after"
    for model, folder in zip((language_model.model, smaller), folders):
        model.save_pretrained(folder)
    ids = torch.randint(3, 64, (2, 40), generator=torch.Generator().manual_seed(0))
    found = effects(language_model, load(folders[1]), [{"input_ids": ids, "labels": ids}], sources=folders, rounds=2)
    measures = {effect.measure: effect for effect in found}
    assert list(measures) == ["parameters", "bytes on disk", "peak memory, bytes", "tokens/s", "perplexity"]
    removed = 2 * 3 * 32 * 48 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32
    assert measures["parameters"].before - measures["parameters"].after == removed
    assert measures["bytes on disk"].ratio < 1 and all(effect.after > 0 for effect in found)
