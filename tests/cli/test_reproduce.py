"""`hf-ext reproduce` and the card that it writes into."""

import pytest
from huggingface_hub import ModelCard

from hf_ext import reproductions
from hf_ext.cards import record, update_block
from hf_ext.reproductions import Experiment, MissingData, Row

CARD = """---
license: mit
pipeline_tag: time-series-forecasting
tags:
- one
---

# Title

## Measured

<!-- experiment: small -->
<!-- /experiment: small -->

## Limits

None known.
"""
ROWS = [Row("test MSE", 0.3861234, paper="0.386", dataset="ETTh1", metric_type="mse"), Row("steps", 100, note="of two")]


@pytest.fixture
def card(cards):
    path = cards / "itransformer" / "README.md"
    path.parent.mkdir(parents=True)
    path.write_text(CARD)
    return path


@pytest.fixture
def offered(monkeypatch, here, card):
    """What `itransformer` offers, for the test to fill; `runs` collects what was run."""
    runs = []

    def small(run):
        runs.append(run)
        return ROWS

    available = {
        "small": Experiment("A small one", small, 0.5, {"steps": (100, "how many"), "rate": (0.5, "how fast")}),
        "other": Experiment("Another", small, 1),
    }
    monkeypatch.setattr(reproductions, "experiments", lambda slug: available)
    return available, runs


def test_reproduce_prints_paper_beside_ours_and_writes_the_card(hf_ext, offered, card):
    outcome = hf_ext("reproduce", "itransformer")
    assert outcome.status == 0 and "0.386 " in outcome.out and "0.3861" in outcome.out
    assert "| test MSE | 0.386 | 0.3861 |" in card.read_text()
    (result,) = ModelCard.load(card).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("ETTh1", "mse", 0.386123)


def test_options_reach_the_experiment_in_the_type_of_their_defaults(hf_ext, offered):
    hf_ext("reproduce", "itransformer", "--option", "steps=3", "--option", "rate=1")
    assert offered[1][0].options == {"steps": 3, "rate": 1.0}
    assert isinstance(offered[1][0].options["rate"], float)


def test_options_may_be_given_by_their_own_names(hf_ext, offered):
    hf_ext("reproduce", "itransformer", "--steps", "3", "--rate=0.5")
    assert offered[1][0].options == {"steps": 3, "rate": 0.5}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--experiment", "none"], "it has small, other"),
        (["--option", "step=3"], "known: steps, rate"),
        (["--option", "steps"], "name=value"),
        (["--steps"], "--name value"),
        (["--stps", "3"], "known: steps, rate"),
        (["--option", "steps=many"], "type int"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_experiment_or_option_is_bad_usage(hf_ext, offered, line, message):
    outcome = hf_ext("reproduce", "itransformer", *line)
    assert outcome.status == 2 and message in outcome.error


def test_list_shows_experiments_and_options(hf_ext, offered):
    out = hf_ext("reproduce", "itransformer", "--list").out
    assert "small: A small one (0.5 min)" in out and "--steps 100  how many" in out
    assert not offered[1]


def test_method_without_experiments_says_so(hf_ext):
    assert "has no experiment yet" in hf_ext("reproduce", "gfmdiff").error


def interrupted(run):
    (run.folder / "checkpoint").write_text("half")
    raise KeyboardInterrupt


def test_interrupted_experiment_leaves_the_card_and_its_folder(hf_ext, offered, card, here):
    offered[0]["small"] = Experiment("", interrupted, 1, offered[0]["small"].options)
    assert hf_ext("reproduce", "itransformer").status == 130
    assert card.read_text() == CARD
    assert (here / "runs/itransformer/small/checkpoint").read_text() == "half"


def test_other_options_do_not_resume_a_run_but_fresh_starts_over(hf_ext, offered, here):
    hf_ext("reproduce", "itransformer")
    left = here / "runs/itransformer/small/checkpoint"
    left.write_text("of the first run")
    assert "other options" in hf_ext("reproduce", "itransformer", "--option", "steps=3").error
    assert hf_ext("reproduce", "itransformer").status == 0 and left.exists()
    assert hf_ext("reproduce", "itransformer", "--option", "steps=3", "--fresh").status == 0 and not left.exists()


def missing(run):
    raise MissingData("ETTh1.csv is not here; pass --option data=FILE")


def test_missing_data_is_one_error(hf_ext, offered, card):
    offered[0]["small"] = Experiment("", missing, 1)
    outcome = hf_ext("reproduce", "itransformer")
    assert outcome.status == 1 and "pass --option data=FILE" in outcome.error
    assert card.read_text() == CARD


def test_results_replace_those_of_the_same_name_and_keep_the_others(card):
    record(card.parent, "small", ROWS)
    record(card.parent, "more", [Row("test MAE", 0.4, dataset="ETTh1", metric_type="mae")])
    record(card.parent, "small", [Row("test MSE", 0.37, dataset="ETTh1", metric_type="mse")])
    results = ModelCard.load(card).data.eval_results
    assert {result.metric_type: result.metric_value for result in results} == {"mae": 0.4, "mse": 0.37}
    text = card.read_text()
    assert "0.3861" not in text and text.count("<!-- experiment: small -->") == 1
    assert text.index("<!-- /experiment: more -->") < text.index("## Limits\n\nNone known.\n")


def test_rows_without_a_data_set_leave_the_metadata_alone(card):
    record(card.parent, "small", [Row("steps", 100)])
    assert card.read_text().startswith(CARD[: CARD.index("# Title")])


def test_block_is_written_twice_as_once(card):
    update_block(card, "benchmark", "| a |")
    once = card.read_text()
    update_block(card, "benchmark", "| a |")
    assert card.read_text() == once


def test_card_without_the_heading_gets_one(card):
    card.write_text("# Title\n")
    update_block(card, "benchmark", "| a |")
    assert card.read_text() == "# Title\n\n## Measured\n\n<!-- benchmark -->\n| a |\n<!-- /benchmark -->\n"


def test_block_that_is_never_closed_is_an_error_and_changes_nothing(card):
    card.write_text("<!-- benchmark -->\n")
    with pytest.raises(ValueError, match="never closes"):
        update_block(card, "benchmark", "x")
    assert card.read_text() == "<!-- benchmark -->\n"


def test_record_without_a_card_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="There is no card"):
        record(tmp_path, "small", ROWS)
