"""The surveys' tables: every leaf leads somewhere, every program runs and holds what it claims, and nothing is named that is not there."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hf_ext.catalog import METHODS
from hf_ext.techniques import PROVIDERS, SURVEYS, TAGS, coverage, entries, find, get_entry, leaves
from hf_ext.techniques.models import MODELS
from hf_ext.techniques.pages import PAGES, grouped, page
from tests.goldens import FOLDER

ENTRIES = find()
QUICK = [entry for entry in ENTRIES if entry.state == "runs" and entry.quick]
SLOW = [entry for entry in ENTRIES if entry.state == "runs" and not entry.quick]
# words of the surveys' time that name models which are not in this version
GONE = ("TransfoXL", "Graphormer", "TrajectoryTransformer", "NatModel", "MegaModel", "AutoModelForVision2Seq")


def id_of(entry):
    return entry.id


@pytest.mark.parametrize("survey", SURVEYS)
def test_taxonomy_is_that_of_the_golden_case(survey):
    case = json.loads((FOLDER / survey / "catalog" / "case.json").read_text())
    assert leaves(survey) == [f"{c}/{leaf}" for c, names in case["arguments"]["leaves"].items() for leaf in names]


@pytest.mark.parametrize(("survey", "leaf"), [(survey, leaf) for survey in SURVEYS for leaf in leaves(survey)])
def test_every_leaf_has_an_entry_that_runs(survey, leaf):
    assert any(entry.state == "runs" for entry in find(survey=survey, leaf=leaf))


@pytest.mark.parametrize("survey", SURVEYS)
def test_no_entry_stands_under_a_leaf_that_is_not_in_the_taxonomy(survey):
    module = import_module(f"hf_ext.techniques.{survey}")
    assert {entry.leaf for entry in module.ENTRIES} | set(getattr(module, "SHARED", {})) <= set(leaves(survey))


@pytest.mark.parametrize("survey", SURVEYS)
def test_coverage_leaves_nothing_open(survey):
    assert set(coverage(survey)) == set(leaves(survey)) and "none" not in coverage(survey).values()


@pytest.mark.parametrize("entry", ENTRIES, ids=id_of)
def test_entry_is_complete(entry):
    assert entry.title and entry.target and entry.provider in PROVIDERS
    assert all(getattr(entry, tag) in values for tag, values in TAGS.items())
    assert not entry.model or entry.model in MODELS
    assert entry.snippet or entry.target in METHODS
    assert entry.task or entry.survey != "survey_applications"
    ast.parse(entry.code)
    ast.parse(entry.check, mode="eval")


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.state in ("runs", "see its card")], ids=id_of)
def test_target_is_there(entry):
    if entry.target in METHODS:
        assert entry.provider == "hf_ext"
        return
    module, _, name = entry.target.rpartition(".")
    try:
        assert hasattr(import_module(module), name)
    except ModuleNotFoundError:  # an attribute of a class
        module, _, owner = module.rpartition(".")
        found = getattr(import_module(module), owner)
        assert hasattr(found, name) or hasattr(found(), name)


@pytest.mark.parametrize("entry", QUICK, ids=id_of)
def test_program_runs_and_holds_what_it_claims(entry, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert entry.run()["seconds"] >= 0
    assert Path.cwd() == tmp_path and not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry", find(survey="survey_applications"), ids=id_of)
def test_program_of_an_application_is_at_most_eight_lines(entry):
    assert sum(bool(line.strip()) for line in entry.snippet.splitlines()) <= 8 or entry.survey != "survey_applications"


def test_only_few_programs_are_too_slow_to_test():
    assert len(SLOW) <= 6


@pytest.mark.parametrize("entry", ENTRIES, ids=id_of)
def test_program_names_no_model_that_is_gone(entry):
    assert not any(name in entry.code for name in GONE)


def test_a_claim_that_does_not_hold_is_an_error():
    from dataclasses import replace

    with pytest.raises(AssertionError, match="claims what does not hold"):
        replace(get_entry("ternary_weights"), check="scale < 0").run()


def test_a_planned_method_is_not_run():
    planned = [entry for entry in ENTRIES if entry.state == "planned"]
    assert all(not METHODS[entry.target].ready for entry in planned)
    for entry in planned[:1]:
        with pytest.raises(ValueError, match="planned"):
            entry.run()


def test_what_two_surveys_share_is_found_once_without_a_survey_and_twice_with():
    assert len({entry.id for entry in ENTRIES}) == len(ENTRIES)
    assert get_entry("albert").survey == "survey_inference"
    assert [e.leaf for e in entries() if e.id == "albert"] == [
        "lightweight/weight_sharing",
        "general/parameter_sharing",
        "nlp/text_classification",
    ]


def test_find_takes_tasks_and_tags():
    assert {"detr", "rt_detr"} <= {entry.id for entry in find(task="object-detection")}
    assert {"vit", "crossvit", "rmt"} <= {entry.id for entry in find(task="image-classification")}
    assert {entry.hardware for entry in find(hardware="cpu")} == {"any", "cpu"}


@pytest.mark.parametrize("wish", [{"nonsense": "x"}, {"survey": "x"}, {"stage": "x"}, {"provider": "x"}])
def test_an_impossible_wish_names_what_is_possible(wish):
    with pytest.raises(ValueError, match=r"survey_inference|find\(\) takes|is not one of"):
        find(**wish)


def test_unknown_technique_suggests_near_ones():
    with pytest.raises(ValueError, match="did you mean smoothquant"):
        get_entry("smothquant")


@pytest.mark.parametrize("by", TAGS)
def test_grouping_keeps_every_entry(by):
    assert sorted(e.id for group in grouped(ENTRIES, by).values() for e in group) == sorted(e.id for e in ENTRIES)


@pytest.mark.parametrize("name", PAGES)
def test_page_is_up_to_date(name):
    path = Path(__file__).parents[2] / "docs" / name
    assert path.read_text(encoding="utf-8") == page(name), f"run `hf-ext techniques --markdown {name} > docs/{name}`"


def test_tables_load_no_models():
    code = """
import sys
from hf_ext.techniques.pages import page
page("techniques.md")
heavy = ("transformers.modeling_utils", "diffusers", "peft")
print([m for m in sys.modules if m in heavy or m.startswith("hf_ext.") and ".modeling_" in m])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
