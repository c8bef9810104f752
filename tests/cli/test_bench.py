"""`hf-ext bench`."""

import json

import pytest

from hf_ext import benchmarks
from hf_ext.benchmarks import Contest, Result

MEASURED = Result("sum", "the slow way", 0.001, 0.002, 0.01, 0.02, 2.0, 1.5, 3.0, "cpu", 1)


@pytest.fixture
def contest(monkeypatch):
    """`itransformer` has one contest that is over at once."""
    contest = Contest("sum", ours=lambda: sum(range(100)), peer=lambda: sum(range(10_000)), peer_name="the slow way")
    monkeypatch.setattr(benchmarks, "contests", lambda slug, reference: [contest])
    monkeypatch.setattr("hf_ext.cli.bench.find_spec", lambda name: name == "hf_ext.benchmarks.itransformer" or None)


@pytest.fixture
def measured(contest, monkeypatch):
    """The contest's result is known before."""
    monkeypatch.setattr(benchmarks, "compare", lambda contest, rounds: MEASURED)


def test_bench_runs_both_sides_and_prints_json(hf_ext, contest):
    (result,) = json.loads(hf_ext("bench", "itransformer", "--json", "--rounds", "2").out)["itransformer"]
    assert result["ratio"] == pytest.approx(result["peer_seconds"] / result["ours_seconds"]) and result["ratio"] > 1


def test_a_contest_may_measure_memory_in_its_own_way():
    sides = {"ours": lambda: 1.5, "peer": lambda: 6.0}
    result = benchmarks.compare(Contest("load", **sides, peer_name="floats", memory=lambda side: side()), rounds=2)
    assert (result.ours_mib, result.peer_mib) == (1.5, 6.0)


def test_bench_prints_ratio_spread_and_memory(hf_ext, measured):
    cells = hf_ext("bench", "itransformer").out.splitlines()[1].split("  ")
    assert [cell.strip() for cell in cells if cell] == [
        "sum", "the slow way", "1 ms ± 1%", "2 ms ± 2%", "2.00", "1.5", "3.0", "cpu", "1"
    ]  # fmt: skip


def test_bench_updates_the_card_only_when_asked(hf_ext, measured, cards):
    card = cards / "itransformer" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text("# Title\n")
    hf_ext("bench", "itransformer")
    assert card.read_text() == "# Title\n"
    hf_ext("bench", "itransformer", "--update-card")
    assert "| sum | the slow way |" in card.read_text()


def test_method_without_benchmark_says_so(hf_ext, contest):
    assert "has no benchmark yet" in hf_ext("bench", "hat").error


def test_missing_reference_is_bad_usage(hf_ext, contest, here):
    outcome = hf_ext("bench", "itransformer", "--reference", "nowhere")
    assert outcome.status == 2 and "nowhere" in outcome.error
