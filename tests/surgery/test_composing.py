"""Recipes by name and as objects, one after the other."""

import pytest
import torch

from hf_ext.surgery import LlmDrop, SurgicalMixin, compress
from hf_ext.surgery.composing import parse
from tests.surgery.bases import BASES, build, inputs_of


def calibration(base):
    return [inputs_of(base)]


@pytest.mark.parametrize("base", ["gpt2", "llama", "vit"])
def test_recipes_by_name_choose_by_the_calibration(base):
    model = build(base).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    smaller = compress(model, ["llm_drop:attention=2", "llm_drop:mlp=1"], calibration(base))
    first, second = smaller.config.surgery
    assert len(first["attention"]) == 2 and len(second["mlp"]) == 1
    assert smaller.training and not isinstance(model, SurgicalMixin)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_recipe_that_says_what_to_change_needs_no_calibration():
    smaller = compress(build("llama"), [LlmDrop(attention=[1]), "repbn:warm=3"])
    assert [entry["name"] for entry in smaller.config.surgery] == ["llm_drop", "repbn"]
    assert smaller.config.surgery[1]["warm"] == 3


def test_options_are_read_as_json_where_they_are_json():
    assert parse("llm_drop:attention=8") == ("llm_drop", {"attention": 8})
    assert parse("repbn:fused=true,step=0.5,kind=x") == ("repbn", {"fused": True, "step": 0.5, "kind": "x"})
    assert parse("llm_drop") == ("llm_drop", {})


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([], "at least one recipe"),
        (["magic"], "no recipe 'magic'; there are"),
        (["llm_drop:attention"], "NAME:option=value"),
        (["llm_drop:heads=2"], "attention=N"),
        (["llm_drop"], "how many of what to drop"),
        (["llm_drop:attention=2"], "needs a calibration"),
        (["repbn:temperature=2"], "does not take these options"),
        (["bct", "llm_drop:attention=2"], "name it last"),
    ],
)
def test_what_cannot_be_done_is_said(recipes, message):
    with pytest.raises(ValueError, match=message):
        compress(build("llama"), recipes)


@pytest.mark.parametrize("base", BASES)
def test_the_given_model_is_left_as_it_is_when_a_recipe_does_not_fit(base):
    model = build(base)
    kind = type(model)
    with pytest.raises(ValueError, match=r"layers|norm"):
        compress(model, [LlmDrop(attention=[99])])
    assert type(model) is kind
