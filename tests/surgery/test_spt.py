"""SPT on upstream's GPT-2, OPT and Llama: what PEFT trains and saves, the loss of the codebooks, the schedule, padding and decoding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Trainer,
    TrainingArguments,
)

from hf_ext.convert import ConversionError, convert_checkpoint
from hf_ext.layers.sparsified import RoutedFeedForward
from hf_ext.ops.sparse_attention import quantizer_loss
from hf_ext.reproductions.training import TensorDataset
from hf_ext.surgery import SPT, apply
from hf_ext.surgery.spt import SPTCallback, apply_spt, settings_of, spt_lora_config
from tests.goldens import FOLDER, read_case

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
TEXT = {"vocab_size": 50, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "gpt2": GPT2Config(**SMALL, **TEXT, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
    "opt": OPTConfig(**SMALL, **TEXT, ffn_dim=48, dropout=0.0, word_embed_proj_dim=32),
    "llama": LlamaConfig(**SMALL, **TEXT, intermediate_size=48, num_key_value_heads=1),
}
IDS = torch.randint(3, 50, (2, 24), generator=torch.Generator().manual_seed(0))
TRAINED = ("lora_", "router", "quantizer", "norm", "ln_")
families = pytest.mark.parametrize("family", CONFIGS)


def dense(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family]).eval()


def sparse(family, **fields):
    model = dense(family)
    torch.manual_seed(1)
    return apply_spt(model, **fields)


def adapted(family, **fields):
    model = sparse(family, **fields)
    return get_peft_model(model, spt_lora_config(model, r=4))


def move(model):
    """Sets everything that trains to other values, LoRA's zeros among them."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def logits(model, ids=IDS, **inputs):
    with torch.no_grad():
        return model.eval()(input_ids=ids, **inputs).logits


@families
def test_all_keys_and_all_blocks_at_even_odds_are_the_dense_model(family):
    model = sparse(family, sparse_coeff=1, active_blocks=4)
    for module in model.modules():
        if isinstance(module, RoutedFeedForward):
            module.router.weight.data.zero_()
            module.router.bias.data.zero_()
    torch.testing.assert_close(logits(model), logits(dense(family)), atol=1e-5, rtol=1e-4)


@families
def test_the_given_model_stays_as_it_is(family):
    model = dense(family)
    before = logits(model)
    apply_spt(model)
    assert torch.equal(logits(model), before)


@families
def test_only_lora_routers_codebooks_and_norms_train_and_all_of_them_do(family):
    model = adapted(family).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == any(part in name and "original_module" not in name for part in TRAINED), name
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name


@families
def test_adapters_restore_onto_a_fresh_model(family, tmp_path):
    model = move(adapted(family))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(sparse(family), tmp_path)), logits(model))


@families
def test_the_changed_model_restores_through_the_auto_class(family, tmp_path):
    model = sparse(family, sparse_coeff=4, n_blocks=2)
    model.save_pretrained(tmp_path)
    restored = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(restored) is type(model)
    torch.testing.assert_close(logits(restored), logits(model))


@families
def test_adapters_switch_off(family):
    model = move(adapted(family))
    with model.disable_adapter():
        off = logits(model)
    torch.testing.assert_close(off, logits(sparse(family)), atol=1e-5, rtol=1e-4)


@families
def test_gradient_checkpointing_changes_no_gradient(family):
    grads = []
    for checkpointing in (False, True):
        model = move(adapted(family)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)


@families
def test_left_padding_changes_nothing(family):
    model = move(adapted(family, sparse_coeff=1))
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), IDS), 1)
    mask = (padded > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    o = logits(model, padded, attention_mask=mask, position_ids=positions)[:, 3:]
    torch.testing.assert_close(o, logits(model), atol=1e-4, rtol=1e-3)


@families
def test_later_tokens_change_nothing(family):
    model, changed = move(adapted(family)), IDS.clone()
    changed[:, 15:] = 7
    torch.testing.assert_close(logits(model, changed)[:, :15], logits(model)[:, :15])


@families
def test_generates(family):
    o = move(adapted(family)).generate(input_ids=IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert o.shape == (2, 28)


@families
def test_bf16_stays_near_fp32(family):
    model = move(adapted(family))
    expected = logits(model)
    o = logits(model.to(torch.bfloat16)).float()
    assert o.isfinite().all()
    assert torch.nn.functional.cosine_similarity(o, expected, dim=-1).median() > 0.98


@families
def test_the_loss_holds_that_of_the_codebooks(family):
    losses = [adapted(family, aux_weight=w).train()(input_ids=IDS, labels=IDS).loss for w in (0.0, 1.0, 2.0)]
    assert losses[1] > losses[0]
    torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0], atol=1e-4, rtol=1e-3)


@families
def test_evaluation_has_the_plain_loss(family):
    losses = [adapted(family, aux_weight=w).eval()(input_ids=IDS, labels=IDS).loss for w in (0.0, 1.0)]
    assert torch.equal(*losses)


def test_opt_codes_queries_as_they_were_before_scaling():
    model = sparse("opt", aux_weight=1.0).train()
    attention = model.model.decoder.layers[0].self_attn
    seen = []
    attention.q_proj.register_forward_hook(lambda module, args, o: seen.append(o))
    attention.k_proj.register_forward_hook(lambda module, args, o: seen.append(o))
    model.model(input_ids=IDS)
    expected = sum(quantizer_loss(x.view(2, 24, 2, 16), attention.quantizer.weight) for x in seen)
    torch.testing.assert_close(attention.pq_loss, expected)


def test_trainer_warms_up_dense_then_sparse(tmp_path):
    model, seen = adapted("llama"), []

    class Watch(SPTCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            super().on_step_begin(args, state, control, **kwargs)
            seen.extend((s.dense, s.learn_codes) for s in settings_of(kwargs["model"]))

    arguments = TrainingArguments(
        tmp_path, max_steps=5, per_device_train_batch_size=1, report_to=[], disable_tqdm=True, save_strategy="no"
    )
    data = TensorDataset(input_ids=IDS, labels=IDS)
    Trainer(model, arguments, train_dataset=data, callbacks=[Watch(warmup_steps=2, pq_every=2)]).train()
    assert seen == [(True, True), (True, False), (False, True), (False, False), (False, True)]
    assert [(s.dense, s.learn_codes) for s in settings_of(model)] == [(False, True)]


@settings(max_examples=6, derandomize=True, deadline=None)
@given(st.sampled_from([2, 4, 8, 16]), st.integers(1, 9), st.sampled_from([1, 2, 4, 8]), st.integers(1, 20), st.data())
def test_any_fitting_recipe_trains(d_codeword, coefficient, blocks, tokens, data):
    active = data.draw(st.integers(1, blocks))
    model = adapted(
        "llama", d_codeword=d_codeword, sparse_coeff=coefficient, n_blocks=blocks, active_blocks=active
    ).train()
    loss = model(input_ids=IDS[:, :tokens], labels=IDS[:, :tokens].clone()).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_any_checkpoint_loads_with_the_attention_alone(family, tmp_path):
    dense(family).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="spt_sparse").train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    short = IDS[:, :1]  # a single key is always kept
    torch.testing.assert_close(logits(model, short), logits(dense(family), short), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_codeword": 5}, "d_codeword=5"),
        ({"n_codewords": 0}, "n_codewords=0"),
        ({"n_blocks": 5}, "n_blocks=5"),
        ({"active_blocks": 9}, "active_blocks=9"),
        ({"sparse_coeff": 0}, "sparse_coeff=0"),
        ({"logit_clamp": 0.0}, "logit_clamp=0"),
    ],
)
def test_impossible_recipes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        sparse("llama", **fields)


def test_other_families_are_refused():
    model = BertForMaskedLM(BertConfig(**SMALL, intermediate_size=48, vocab_size=50))
    with pytest.raises(ValueError, match="gpt2, opt, llama"):
        apply(model, SPT())


def test_lora_needs_the_recipe_first():
    with pytest.raises(ValueError, match="apply_spt"):
        spt_lora_config(dense("llama"))


def test_lora_with_dropout_is_refused_in_the_routed_network():
    model = sparse("llama")
    model = get_peft_model(model, spt_lora_config(model, lora_dropout=0.1))
    with pytest.raises(ValueError, match="lora_dropout=0"):
        model.train()(input_ids=IDS)


@pytest.mark.parametrize("arguments", [{"warmup_steps": -1}, {"pq_every": 0}])
def test_impossible_schedules_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SPTCallback(**arguments)


@pytest.mark.parametrize("name", ["opt_lm", "llama_lm"])
def test_a_missing_tensor_of_a_checkpoint_is_named(name):
    case = read_case(FOLDER / "spt" / name)
    del case["state_dict"]["decoders.0.ffd.router.0.weight"]
    with pytest.raises(ConversionError, match=r"missing: .*router\.weight"):
        convert_checkpoint("spt", case["state_dict"], case["arguments"])


@pytest.mark.parametrize(("change", "message"), [({"family": "bert"}, "bert"), ({"n_experts": 2}, "n_experts")])
def test_unknown_arguments_of_a_checkpoint_are_named(change, message):
    case = read_case(FOLDER / "spt" / "opt_lm")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint("spt", case["state_dict"], case["arguments"] | change)
