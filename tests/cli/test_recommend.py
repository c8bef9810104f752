"""`hf-ext recommend`: techniques tried on a model, and what they did to it."""

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, ViTModel

from hf_ext.measuring import load
from hf_ext.techniques import get_entry
from hf_ext.techniques.recommendations import CANDIDATES, GOALS, recommend
from tests.surgery.bases import BASES

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recommend") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recommend") / "bert"
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=64)).save_pretrained(folder)
    return folder


def only(*ids):
    return [part for id in ids for part in ("--only", id)]


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.id)
def test_candidates_are_entries_of_the_tables(candidate):
    assert get_entry(candidate.id).snippet


def test_what_shrinks_the_model_most_comes_first(hf_ext, bert):
    line = ["recommend", bert, "--goal", "size", "--rounds", 2, *only("bfloat16", "dynamic_int8", "sdpa"), "--json"]
    found = json.loads(hf_ext(*line).out)
    assert [one["id"] for one in found] == ["dynamic_int8", "bfloat16", "sdpa"]
    assert found[1]["after"]["saved MiB"] == pytest.approx(found[1]["before"]["saved MiB"] / 2, rel=0.05)
    assert found[0]["difference"] < 0.1 and found[2]["reason"].startswith("its attention is 'sdpa' already")


def test_the_table_names_the_best_and_how_to_get_it(hf_ext, bert):
    out = hf_ext("recommend", bert, "--goal", "size", "--rounds", 2, *only("bfloat16", "optin")).out
    assert "for size, the most there is: bfloat16" in out and "dtype=torch.bfloat16" in out
    assert "not optin: it chooses by data: give --calibration" in out


def test_a_recipe_chooses_by_the_calibration(llama):
    ids = torch.randint(3, 100, (2, 32))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
    (one,) = recommend(llama, "memory", calibration=batches, evaluation=batches, only=["attention_dropping"], rounds=2)
    assert one.reason == "" and one.gain("size") > 1
    assert {"perplexity", "time", "saved MiB", "memory MiB"} == set(one.after) == set(one.before)


def test_what_does_not_fit_says_why(llama):
    (one,) = recommend(llama, only=["torch_compile"], rounds=2)
    assert "static" in one.reason and one.gain("latency") == 0


def test_the_model_is_left_as_it_was(bert):
    loaded = load(bert)
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    recommend(bert, "size", only=["bfloat16", "dynamic_int8", "pre_rmsnorm"], rounds=2, loaded=loaded)
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


@pytest.mark.parametrize(
    "line", [["--goal", "beauty"], ["--only", "nonsense"], ["--calibration", "nowhere.txt"]], ids=" ".join
)
def test_bad_usage_is_one_error(hf_ext, llama, line):
    assert hf_ext("recommend", llama, *line).error


def test_a_model_without_a_task_that_can_be_measured_is_refused(tmp_path):
    ViTModel(BASES["vit"][1]).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="language models and classifiers"):
        recommend(tmp_path / "vit", next(iter(GOALS)))
