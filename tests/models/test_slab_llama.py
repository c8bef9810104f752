"""SLAB's language model: Llama while it warms up, RepBN at inference, folded or not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from hf_ext.convert import convert_checkpoint
from hf_ext.layers.repbn import RepBatchNorm
from hf_ext.models.slab import SlabLlamaConfig, SlabLlamaForCausalLM
from hf_ext.training.slab import ProgressiveNormCallback, progressive_norms
from tests.goldens import FOLDER, call_arguments, read_case

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
IDS = torch.randint(1, 40, (2, 9), generator=torch.Generator().manual_seed(0))
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def model(**fields) -> SlabLlamaForCausalLM:
    """With parameters and statistics as after some training."""
    torch.manual_seed(0)
    built, generator = SlabLlamaForCausalLM(SlabLlamaConfig(**SMALL | fields)), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, RepBatchNorm):
                for tensor in module.state_dict().values():
                    if tensor.is_floating_point():
                        tensor.copy_(0.3 + torch.rand(tensor.shape, generator=generator))
    return built.eval()


def test_preset_has_the_published_number_of_parameters():
    with torch.device("meta"):
        built = SlabLlamaForCausalLM(SlabLlamaConfig.from_preset("slab-llama-350m"))
    assert sum(parameter.numel() for parameter in built.parameters()) == 367_639_589


def test_repbn_starts_as_the_map_to_zero_with_the_eps_of_rmsnorm():
    norm = SlabLlamaForCausalLM(SlabLlamaConfig(**SMALL, rms_norm_eps=1e-5)).model.norm.norm2
    assert not any(parameter.any() for parameter in norm.parameters())
    assert norm.bn.eps == 1e-5


def test_training_is_that_of_llama_while_the_norms_warm_up():
    slab = model(norm_warmup_steps=2, norm_update_every=1).train()
    llama = LlamaForCausalLM(LlamaConfig(**SMALL))
    own = {name.replace(".norm1.", "."): tensor for name, tensor in slab.state_dict().items()}
    llama.load_state_dict({name: own[name] for name in llama.state_dict()})
    for _ in range(2):
        torch.testing.assert_close(slab(IDS).logits, llama(IDS).logits)
    assert not any(int(norm.warm) for norm in progressive_norms(slab))


@torch.no_grad()
def test_folding_changes_no_output_and_restores(tmp_path):
    slab = model()
    expected = slab(IDS).logits
    slab.fuse().save_pretrained(tmp_path)
    torch.testing.assert_close(slab(IDS).logits, expected, **CLOSE)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.fused and torch.equal(loaded(IDS).logits, slab(IDS).logits)
    assert not [name for name, _ in loaded.named_parameters() if ".norm1." in name]


@torch.no_grad()
def test_folding_the_golden_model_keeps_the_logits_of_the_reference():
    case = read_case(FOLDER / "slab" / "llama")
    slab = convert_checkpoint("slab", case["state_dict"], case["arguments"]).fuse()
    logits = slab(**call_arguments(case)).logits
    torch.testing.assert_close(logits, case["outputs"]["logits"], atol=case["atol"], rtol=case["rtol"])


def test_folding_leaves_the_final_norm():
    slab = model().fuse()
    assert [name for name, module in slab.named_modules() if isinstance(module, RepBatchNorm)] == ["model.norm"]


@pytest.mark.parametrize("fused", [False, True])
def test_generating_with_the_cache_equals_without(fused):
    slab = model().fuse() if fused else model()
    assert torch.equal(slab.generate(IDS, use_cache=True, **GREEDY), slab.generate(IDS, use_cache=False, **GREEDY))


def test_left_padding_does_not_change_what_is_generated():
    slab, padded = model(), torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    generated = slab.generate(padded, attention_mask=(padded > 0).long(), **GREEDY)
    assert torch.equal(generated[:, 12:], slab.generate(IDS, **GREEDY)[:, 9:])


def test_only_the_final_norm_leaves_padding_out_of_its_statistics():
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    seen = {}
    slab = model(norm_warmup_steps=0, norm_decay_steps=1).train()
    first = slab.model.layers[0].input_layernorm
    for name, norm in (("first", first), ("final", slab.model.norm)):
        norm.norm2.bn.register_forward_pre_hook(lambda bn, args, name=name: seen.update({name: len(args[0])}))
    slab(IDS, attention_mask=mask)
    assert seen == {"first": mask.numel(), "final": int(mask.sum())}


def test_callback_drives_the_norms_of_the_language_model():
    from transformers import TrainerControl, TrainerState

    slab, callback = model(), ProgressiveNormCallback(warm=2, steps=4)
    callback.on_step_begin(None, TrainerState(global_step=3, max_steps=9), TrainerControl(), model=slab)
    assert {norm.ratio for norm in progressive_norms(slab)} == {0.75}


@torch.no_grad()
def test_folded_model_loads_in_8_bit(tmp_path):
    import bitsandbytes

    slab = model().fuse()
    slab.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    assert isinstance(loaded.model.layers[0].self_attn.q_proj, bitsandbytes.nn.Linear8bitLt)
    assert (loaded(IDS).logits.float() - slab(IDS).logits).norm() < 0.1 * slab(IDS).logits.norm()


def test_what_the_reference_does_not_look_at_is_ignored():
    arguments = SMALL | {"num_key_value_heads": 2, "attention_bias": True, "rope_theta": 5e5, "model_type": "llama"}
    slab = convert_checkpoint("slab", model().state_dict(), arguments)
    torch.testing.assert_close(slab(IDS).logits, model()(IDS).logits)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 12), st.integers(1, 3))
def test_any_size_folds_exactly(layers, heads, batch, length, vocabulary):
    slab = model(num_hidden_layers=layers, num_attention_heads=heads, vocab_size=10 * vocabulary)
    ids = torch.randint(1, 10 * vocabulary, (batch, length), generator=torch.Generator().manual_seed(2))
    expected = slab(ids).logits
    torch.testing.assert_close(slab.fuse()(ids).logits, expected, **CLOSE)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: SlabLlamaConfig(**SMALL | {"hidden_size": 30}), "`num_attention_heads` must divide `hidden_size`"),
        (lambda: SlabLlamaConfig(**SMALL, norm_warmup_steps=-1), "`norm_warmup_steps` must be at least 0, got -1"),
        (lambda: SlabLlamaConfig(**SMALL, norm_decay_steps=0), "`norm_decay_steps` must be at least 1, got 0"),
        (lambda: SlabLlamaConfig(**SMALL, norm_update_every=0), "`norm_update_every` must be at least 1"),
        (lambda: SlabLlamaConfig(**SMALL, norm_ratio=1.5), "`norm_ratio` must be from 0 to 1, got 1.5"),
        (lambda: SlabLlamaConfig.from_preset("slab-llama-7b"), "there are: slab-llama-350m"),
        (lambda: model().train().fuse(), "call `model.eval\\(\\)`"),
        (lambda: convert_checkpoint("slab", model().state_dict(), SMALL | {"depth": 3}), "no arguments \\['depth'\\]"),
    ],
)
def test_bad_requests_say_what_is_allowed(request_, message):
    with pytest.raises(ValueError, match=message):
        request_()
