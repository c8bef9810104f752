"""`hf-ext list`, `hf-ext info`, and what every command line has in common."""

import json
import subprocess
import sys

import pytest

from hf_ext.catalog import METHODS
from hf_ext.cli import COMMANDS


def test_list_shows_all_methods(hf_ext):
    lines = hf_ext("list").out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(METHODS)
    assert lines[-1].startswith("83 methods, ")


@pytest.mark.parametrize(
    ("filters", "slugs"),
    [
        (["--kind", "catalogue"], ["survey_inference", "survey_applications", "survey_faster_lighter"]),
        (["--kind", "surgery", "--task", "text-generation"], ["fusegpt", "llm_drop"]),
        (["--status", "planned", "--task", "retrosynthesis"], ["pdvn"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_list_filters(hf_ext, filters, slugs):
    assert [entry["slug"] for entry in json.loads(hf_ext("list", "--json", *filters).out)] == slugs


@pytest.mark.parametrize("option", ["--kind", "--task", "--status"])
def test_list_refuses_an_unknown_filter_and_names_the_known(hf_ext, option):
    outcome = hf_ext("list", option, "nonsense")
    assert outcome.status == 2 and "not one of" in outcome.error


def test_info_tells_what_a_planned_method_is(hf_ext):
    method = next(method for method in METHODS.values() if not method.ready and method.arxiv and method.reference)
    out = hf_ext("info", method.slug).out
    assert "status: planned" in out and f"https://arxiv.org/abs/{method.arxiv}" in out and method.reference in out


def test_info_counts_the_parameters_of_presets(hf_ext):
    facts = json.loads(hf_ext("info", "itransformer", "--json").out)
    assert facts["parameters"]["etth1-96"] == 841_568
    assert facts["classes"]["AutoModelForTimeSeriesPrediction"] == "ITransformerForPrediction"
    assert facts["converter"] is True


@pytest.mark.parametrize(
    "method", [method for method in METHODS.values() if method.cannot], ids=lambda method: method.slug
)
def test_info_gives_reasons_for_what_a_method_cannot_do(hf_ext, method):
    out = hf_ext("info", method.slug).out
    assert all(reason in out for reason in method.cannot.values())


@pytest.mark.parametrize("command", ["info", "bench", "reproduce"])
def test_unknown_slug_is_one_error_that_suggests_near_names(hf_ext, command):
    outcome = hf_ext(command, "itransformr")
    assert outcome.status == 1 and "did you mean itransformer" in outcome.error


def test_no_arguments_show_the_help(hf_ext):
    outcome = hf_ext()
    assert all(command in outcome.out + outcome.err for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(hf_ext, command):
    outcome = hf_ext(command, "--help")
    assert outcome.status == 0 and f"hf-ext {command}" in outcome.out


@pytest.mark.parametrize("line", [["nonsense"], ["list", "--nonsense"], ["info"], ["info", "gla", "gla"]], ids=" ".join)
def test_bad_usage_is_status_2(hf_ext, line):
    outcome = hf_ext(*line)
    assert outcome.status == 2 and outcome.error


@pytest.mark.parametrize("line", [["--debug", "info", "nonsense"], ["info", "nonsense", "--debug"]], ids=" ".join)
def test_debug_shows_the_traceback(hf_ext, line):
    outcome = hf_ext(*line)
    assert outcome.status == 1 and "Traceback" in outcome.err


def test_interruption_is_status_130_and_one_line(hf_ext, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_ext.cli.listing.show_table", interrupt)
    outcome = hf_ext("list")
    assert (outcome.status, outcome.err) == (130, "hf-ext: interrupted\n")


def test_unforeseen_error_is_one_line(hf_ext, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("hf_ext.cli.listing.show_table", fail)
    assert hf_ext("list").error == "hf-ext: RuntimeError: first line (--debug shows where)\n"


def test_list_loads_no_models():
    code = """
import sys
from hf_ext.cli import main
main(["list", "--json"])
heavy = ("transformers.modeling_utils", "diffusers", "peft")
print([m for m in sys.modules if m in heavy or m.startswith("hf_ext.") and ".modeling_" in m], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)) == 83
    assert done.stderr.splitlines()[-1] == "[]"


def test_doctor_reports_the_installation(hf_ext):
    outcome = hf_ext("doctor")
    assert outcome.status == 0
    assert all(word in outcome.out for word in ("torch: ", "compiler: ", "gla: ", "extras"))


def test_doctor_names_the_form_that_each_op_runs_on(tmp_path, monkeypatch):
    from hf_ext.cli import doctor

    (tmp_path / "scan").mkdir()
    for name in ("reference.py", "eager.py", "native.cpp"):
        (tmp_path / "scan" / name).touch()
    assert dict(doctor.op_forms(tmp_path)) == {"scan": "native on the CPU, eager on a GPU"}
    monkeypatch.setenv("HF_EXT_NATIVE", "0")
    assert dict(doctor.op_forms(tmp_path)) == {
        "scan": "eager on the CPU, eager on a GPU (native.cpp is not used: HF_EXT_NATIVE=0)"
    }


def test_build_says_so_when_there_is_nothing_to_build(hf_ext, monkeypatch):
    monkeypatch.setattr("hf_ext.cli.build.native_sources", dict)
    assert "nothing to build" in hf_ext("build").out


def test_build_reports_a_source_that_does_not_compile(hf_ext, monkeypatch, tmp_path):
    (tmp_path / "native.cpp").write_text("this is not C++")
    monkeypatch.setattr("hf_ext.cli.build.native_sources", lambda: {"scan": tmp_path / "native.cpp"})
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    outcome = hf_ext("build")
    assert outcome.status == 1 and "scan cannot be built" in outcome.error
