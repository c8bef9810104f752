"""The catalogue: 83 methods, and nothing said to work that does not."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from hf_ext.catalog import KINDS, METHODS, get_method

READY = [method for method in METHODS.values() if method.ready]
ORDER = """
gfmdiff sttn todyformer transformer_tts survey_inference dt_ddnn gpht flow_transformer mt3 rmt survey_applications nat dualformer
itransformer cbnet pres driver_video_swin mossformer pixart_delta hat vdt relactrl flashrnn dtrn easycontrol gla bytetransformer dlgsanet
ssa virtual_nodes fmvit rt_detr slab aaren group_detr spt bct nextvit dit_router ted_viton survey_faster_lighter spectral_graph_lstm
crossvit dimr wide_attention netmamba netfound motformer3d deltanet ts_lstm relation_detr lmuformer pre_rmsnorm efficientformer dtr
flatformer mpnn_vn daformer t2t_vit efficient_tdnn fusegpt pt_dit label_shift_adapter dit3d att_swin_unet singlepath optin fretna deftan2
routing_transformer transdae dynn dualtoken_vit tpgn nn_jit_web informer stateful_conformer pdvn dwformer tcnca llm_drop swtr_unet a_sdm
""".split()  # noqa: SIM905 - a list would be a screen high


def test_all_methods_are_there_in_order():
    assert len(set(ORDER)) == 83
    assert list(METHODS) == ORDER
    assert all(slug == method.slug for slug, method in METHODS.items())


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.slug)
def test_entry_is_complete(method):
    assert method.title and method.task
    assert re.fullmatch(r"\d{4}\.\d{4,5}", method.arxiv) or method.slug == "pdvn"
    assert set(method.kind.split("+")) <= set(KINDS)
    assert method.status in ("ready", "planned")
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", method.reference) or not method.reference
    assert bool(method.licence) == bool(method.reference)


def test_titles_and_papers_are_not_repeated():
    for name in ("title", "arxiv"):
        values = [getattr(method, name) for method in METHODS.values() if getattr(method, name)]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("method", READY, ids=lambda method: method.slug)
def test_ready_method_loads_all_its_classes(method):
    assert method.classes or import_module(f"hf_ext.{method.home}")  # an op or a mode has functions alone
    others = [name for config, classes in method.others.items() for name in (config, *classes.values())]
    for name in filter(None, (method.config, *method.classes.values(), *others)):
        assert method.load(name).__name__ == name


@pytest.mark.parametrize("method", READY, ids=lambda method: method.slug)
def test_ready_method_has_a_card(method):
    text = (method.card / "README.md").read_text()
    assert f"arxiv:{method.arxiv}" in text


@pytest.mark.parametrize("method", [method for method in READY if method.config], ids=lambda method: method.slug)
def test_configuration_checks_the_types_of_its_fields(method):
    """`@strict` sees no types where `from __future__ import annotations` makes them text."""
    config_class = method.config_class()
    assert not [annotation for annotation in config_class.__annotations__.values() if isinstance(annotation, str)]


@pytest.mark.parametrize(("wrong", "near"), [("crosvit", "crossvit"), ("llmdrop", "llm_drop")])
def test_unknown_slug_suggests_near_names(wrong, near):
    with pytest.raises(ValueError, match=f"did you mean {near}"):
        get_method(wrong)


def test_unknown_slug_without_near_names_points_to_the_list():
    with pytest.raises(ValueError, match="hf-ext list"):
        get_method("zzzzzz")


def test_checkpoint_is_the_card_only_where_it_holds_weights():
    for method in METHODS.values():
        held = any(Path(method.card).glob("model*.safetensors")) or (method.card / "model_index.json").is_file()
        assert method.checkpoint == (method.card if held else None)
