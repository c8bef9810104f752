"""Recipes one after the other, on four bases: what comes out is saved, restored, quantized, adapted and spread like any other model."""

from functools import cache

import pytest
import torch

from hf_ext.surgery import Optin, compress
from tests.passport import CHECKS, Subject
from tests.surgery.bases import BASES, build, inputs_of

RECIPES = {
    "llm_drop": "llm_drop:attention=1",
    "optin": "optin:flops=0.7",
    "pre_rmsnorm": "pre_rmsnorm",
    "fusegpt": "fusegpt:blocks=1,group_size=3,epochs=1",
    "bct": "bct:block_size=16",
}
# what is refused, with which reason: recipes on a base, and one after another on any base
REFUSED = {
    ("llm_drop", "bert"): "norms follow the residual sum",
    ("pre_rmsnorm", "bert"): "post-norm",
}
UNEQUAL = Optin(neurons=["0-9", "0-19", "0-29", "0-39"])
PAIRS = [
    (first, second, base)
    for base in BASES
    for first in RECIPES
    for second in RECIPES
    if first != second and first != "bct" and (first, second) != ("optin", "fusegpt")  # depends on what is left
]
WORKING = [(a, b, base) for a, b, base in PAIRS if not {(a, base), (b, base)} & set(REFUSED)]
STRUCTURAL = [pair for pair in WORKING if pair[1] != "bct"]
FLOATING = ("save_and_load", "load_in_8bit", "lora", "disk_offload")


def calibration(base):
    return [{name: x for name, x in inputs_of(base).items() if torch.is_tensor(x)}]


@cache
def composed(first, second, base):
    return compress(build(base), [RECIPES[first], RECIPES[second]], calibration(base))


@pytest.mark.parametrize(("first", "second", "base"), WORKING)
@torch.no_grad()
def test_a_pair_is_restored_by_the_auto_class_with_equal_outputs(first, second, base, tmp_path):
    import transformers

    model = composed(first, second, base)
    model.save_pretrained(tmp_path)
    loaded = getattr(transformers, BASES[base][0]).from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    inputs = inputs_of(base)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("check", FLOATING)
@pytest.mark.parametrize(("first", "second", "base"), STRUCTURAL)
def test_a_pair_goes_through_the_rest_of_the_stack(first, second, base, check):
    model = composed(first, second, base)
    CHECKS[check](Subject(type(model), model.config, inputs_of(base), (BASES[base][0],)))


@pytest.mark.parametrize("base", ["gpt2", "llama"])
@pytest.mark.parametrize(("first", "second"), sorted({pair[:2] for pair in WORKING}))
def test_a_pair_generates_the_same_with_and_without_cache(first, second, base):
    model, ids = composed(first, second, base), inputs_of(base)["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("base", ["gpt2", "vit"])
@pytest.mark.parametrize("other", ["llm_drop", "optin", "fusegpt"])
@torch.no_grad()
def test_the_lossless_recipe_stays_lossless_after_another(other, base):
    alone = compress(build(base), [RECIPES[other]], calibration(base))
    inputs = inputs_of(base)
    both = compress(alone, [RECIPES["pre_rmsnorm"]])
    torch.testing.assert_close(both(**inputs).logits, alone(**inputs).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("recipe", "base"), REFUSED)
def test_what_does_not_fit_a_base_is_refused_with_the_reason(recipe, base):
    with pytest.raises(ValueError, match=REFUSED[recipe, base]):
        compress(build(base), [RECIPES[recipe]], calibration(base))


@pytest.mark.parametrize("base", BASES)
def test_layers_of_unequal_width_are_not_fused(base):
    with pytest.raises(ValueError, match="fuse before layers are made narrower"):
        compress(build(base), [UNEQUAL, RECIPES["fusegpt"]], calibration(base))


@pytest.mark.parametrize("base", BASES)
def test_nothing_is_rebuilt_after_numbers_have_changed_their_format(base):
    with pytest.raises(ValueError, match="name it last"):
        compress(build(base), [RECIPES["bct"], RECIPES["optin"]], calibration(base))
