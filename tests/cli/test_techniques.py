"""`hf-ext techniques`: the surveys' tables on the terminal."""

import json

import pytest

from hf_ext.techniques import find
from hf_ext.techniques.pages import page


def test_all_techniques_are_listed(hf_ext):
    lines = hf_ext("techniques").out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [entry.id for entry in find()]
    assert lines[-1].startswith(f"{len(find())} techniques, ")


def test_a_surveys_techniques_alone(hf_ext):
    found = json.loads(hf_ext("techniques", "--survey", "survey_inference", "--leaf", "pruning/head", "--json").out)
    assert [entry["id"] for entry in found] == ["head_importance", "optin_heads"]


@pytest.mark.parametrize("by", ["stage", "hardware", "application"])
def test_grouped_by_a_tag_everything_is_there_once(hf_ext, by):
    out = hf_ext("techniques", "--by", by).out
    assert f"{by}: " in out and f"{len(find())} techniques" in out
    assert sum(line.split()[0] == "smoothquant" for line in out.splitlines() if line.strip()) == 1


def test_an_id_shows_its_program(hf_ext):
    out = hf_ext("techniques", "smoothquant").out
    assert "state: runs" in out and find(leaf="quantization/smoothquant")[0].code in out


def test_a_method_of_ours_shows_its_published_sizes(hf_ext):
    assert "presets: " in hf_ext("techniques", "hat").out and "M)" in hf_ext("techniques", "hat").out


def test_a_planned_method_is_called_planned(hf_ext):
    for entry in find(state="planned")[:1]:
        assert "state: planned" in hf_ext("techniques", entry.id).out
        assert "planned" in hf_ext("techniques", entry.id, "--run").error


def test_run_shows_what_a_program_measures(hf_ext):
    out = hf_ext("techniques", "neuron_removal", "--run").out
    assert out.splitlines()[-1].startswith("neuron_removal") and "->" in out


def test_run_gives_numbers_as_json(hf_ext):
    numbers = json.loads(hf_ext("techniques", "neuron_removal", "--run", "--json").out)["neuron_removal"]
    assert numbers["after: parameters"] < numbers["before: parameters"]
    assert numbers["after: operations"] < numbers["before: operations"]


def test_markdown_is_the_page_of_the_documentation(hf_ext):
    assert hf_ext("techniques", "--markdown", "applications.md").out == page("applications.md")


@pytest.mark.parametrize(
    "line",
    [["smothquant"], ["--survey", "x"], ["--by", "x"], ["--task", "x"], ["--markdown", "x.md"]],
    ids=" ".join,
)
def test_bad_usage_is_one_error(hf_ext, line):
    assert hf_ext("techniques", *line).error
