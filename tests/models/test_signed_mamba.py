"""Mamba with eigenvalues in [-1, 1]: equal to upstream's in the old range, the same on every path in the new one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MambaConfig, MambaForCausalLM

from hf_ext.convert import convert_checkpoint
from hf_ext.models.deltanet import SignedMambaConfig, SignedMambaForCausalLM
from tests.tiny import OTHERS, tokens


def tiny(**overrides):
    fields = OTHERS["SignedMambaConfig"]()[0].to_diff_dict()
    return SignedMambaConfig(**fields | {"use_cache": True, "eos_token_id": None, "bos_token_id": None} | overrides)


def build(**overrides):
    torch.manual_seed(0)
    model = SignedMambaForCausalLM(tiny(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def test_the_authors_parity_model_has_its_size():
    with torch.device("meta"):
        model = SignedMambaForCausalLM(SignedMambaConfig.from_preset("mamba-parity"))
    assert model.num_parameters() == 232_448


def test_in_the_old_range_it_is_upstreams_mamba():
    model = build(allow_neg_eigval=False)
    fields = {
        n: v
        for n, v in model.config.to_diff_dict().items()
        if n not in ("model_type", "use_final_norm", "allow_neg_eigval")
    }
    upstream = MambaForCausalLM(MambaConfig(**fields)).eval()
    upstream.load_state_dict(model.state_dict())
    ids, mask = tokens(61), torch.tensor([[0, 0, 0] + [1] * 9, [1] * 12])
    for arguments in ({}, {"attention_mask": mask}):
        torch.testing.assert_close(model(ids, **arguments).logits, upstream(ids, **arguments).logits)


def test_the_new_range_gives_something_else():
    ids = tokens(61)
    assert (build()(ids).logits - build(allow_neg_eigval=False)(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("conv_kernel", [1, 4])
def test_decoding_with_the_cache_equals_one_forward_pass(conv_kernel):
    model, ids = build(conv_kernel=conv_kernel), tokens(61, length=20)
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :9])
        cache, parts = first.cache_params, [first.logits]
        for part in (ids[:, 9:10], ids[:, 10:17], ids[:, 17:18], ids[:, 18:]):
            parts.append(model(part, cache_params=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


def test_a_left_padded_batch_generates_what_single_prompts_do():
    model = build()
    short, long = tokens(61, batch=1, length=3), tokens(61, batch=1, length=7) % 60 + 1
    batch = torch.cat((torch.cat((torch.zeros(1, 4, dtype=torch.long), short), 1), long))
    mask = (torch.arange(7) >= torch.tensor([[4], [0]])).long()
    together = model.generate(batch, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, 7:]
    apart = [model.generate(x, max_new_tokens=6, do_sample=False)[:, x.shape[1] :] for x in (short, long)]
    assert torch.equal(together, torch.cat(apart))


def test_padding_on_the_right_leaves_the_state_as_it_is():
    model, ids = build(), tokens(61, batch=1, length=8)
    padded, mask = torch.cat((ids, torch.zeros(1, 3, dtype=torch.long)), 1), torch.tensor([[1] * 8 + [0] * 3])
    states = [
        model(x, attention_mask=m).cache_params.layers[0].recurrent_states[0] for x, m in ((ids, None), (padded, mask))
    ]
    torch.testing.assert_close(*states)


def test_the_converter_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="no argument heads"):
        convert_checkpoint("deltanet", {}, {"d_model": 8, "heads": 4})


def test_parts_of_mambapy_outside_the_method_are_refused():
    with pytest.raises(ValueError, match="mup=True"):
        convert_checkpoint("deltanet", {}, {"d_model": 8, "n_layers": 1, "vocab_size": 3, "mup": True})


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "state_size", "num_hidden_layers", "conv_kernel"])
def test_sizes_below_one_are_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1; got 0"):
        tiny(**{field: 0})


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    state_size=st.integers(1, 5),
    expand=st.integers(1, 3),
    conv_kernel=st.integers(1, 4),
    allow_neg_eigval=st.booleans(),
    use_final_norm=st.booleans(),
    use_conv_bias=st.booleans(),
    length=st.integers(1, 20),
)
def test_any_configuration_trains_and_decodes_as_it_reads(length, **overrides):
    model, ids = build(num_hidden_layers=1, **overrides), tokens(61, length=length + 1)
    output = model(ids, labels=ids, use_cache=False)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    cache = model(ids[:, :-1]).cache_params
    last = model(ids[:, -1:], cache_params=cache).logits
    torch.testing.assert_close(last, output.logits[:, -1:], atol=1e-5, rtol=1e-3)
