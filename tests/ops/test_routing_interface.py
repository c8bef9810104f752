"""`attn_implementation="routing"` on models of Transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from hf_ext.ops.routed_attention.interface import RoutingSettings
from tests.training.test_ssa import FAMILIES, IDS, inputs, loss

families = pytest.mark.parametrize("family", FAMILIES)
texts = pytest.mark.parametrize("family", [name for name in FAMILIES if name != "vit"])


def build(family, implementation="routing", **fields):
    auto, config = FAMILIES[family]
    torch.manual_seed(0)
    model = auto.from_config(type(config).from_dict(config.to_dict()), attn_implementation=implementation)
    model.config.routing = fields
    return model


@families
def test_from_pretrained_takes_the_name_and_trains(family, tmp_path):
    build(family, "sdpa").save_pretrained(tmp_path)
    model = FAMILIES[family][0].from_pretrained(tmp_path, attn_implementation="routing").train()
    loss(model, family).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@families
@torch.no_grad()
def test_one_cluster_of_everything_is_dense_attention(family):
    expected = build(family, "sdpa").eval()(**inputs(family)).logits
    model = build(family, num_clusters=1).eval()
    torch.testing.assert_close(model(**inputs(family)).logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(build(family).eval()(**inputs(family)).logits, expected, atol=1e-5)


@texts
@torch.no_grad()
def test_padded_tokens_are_never_taken_or_seen(family):
    model = build(family).eval()
    mask = (torch.arange(24) < 18).long().expand(2, -1)
    outputs = [
        model(input_ids=IDS.masked_fill(mask == 0, filler), attention_mask=mask).logits[:, :18] for filler in (5, 40)
    ]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_clusters_that_take_everything_never_see_the_future(family):
    model = build(family, num_clusters=3, window=24).eval()
    outputs = [
        model(input_ids=torch.cat((IDS[:, :15], torch.full((2, 9), last)), 1)).logits[:, :15] for last in (5, 40)
    ]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_models_generate(family):
    assert build(family).eval().generate(IDS, max_new_tokens=4, eos_token_id=None).shape == (2, 28)


def test_settings_travel_with_the_model(tmp_path):
    build("bert", num_clusters=2).save_pretrained(tmp_path)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path).config.routing == {"num_clusters": 2}


def test_sizes_follow_the_square_root_of_the_length():
    assert RoutingSettings().sizes(64) == (8, 8)
    assert RoutingSettings().sizes(1) == (1, 1)
    assert RoutingSettings(num_clusters=4, window=100).sizes(10) == (4, 10)


@pytest.mark.parametrize("field", ["num_clusters", "window"])
def test_impossible_settings_are_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field}=0 must be at least 1"):
        RoutingSettings(**{field: 0})


def test_compiles_without_graph_breaks():
    model = build("llama").eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs("llama")).logits, model(**inputs("llama")).logits)


def test_the_registered_name_is_known_to_auto_classes():
    assert (
        AutoModelForCausalLM.from_config(
            FAMILIES["llama"][1], attn_implementation="routing"
        ).config._attn_implementation
        == "routing"
    )
