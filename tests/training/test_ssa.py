"""Training with subsampled attention on models of Transformers: registration, schedule, masks, checkpointing, the ensemble."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    ViTConfig,
)

from hf_ext.ops.subsampled_attention import interface
from hf_ext.reproductions.training import TensorDataset
from hf_ext.training.ssa import SSACallback, SSAConfig, ssa_ensemble, subsampling, use_ssa

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 50, "max_position_embeddings": 64, "pad_token_id": 0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FAMILIES = {
    "vit": (AutoModelForImageClassification, ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=3)),
    "bert": (AutoModelForMaskedLM, BertConfig(**SMALL, **TEXT, **NO_DROPOUT)),
    "gpt2": (
        AutoModelForCausalLM,
        GPT2Config(**SMALL, **TEXT, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=1, eos_token_id=2),
    ),
    "llama": (AutoModelForCausalLM, LlamaConfig(**SMALL, **TEXT, num_key_value_heads=2)),
}
IDS = torch.randint(3, 50, (2, 24), generator=torch.Generator().manual_seed(0))
families = pytest.mark.parametrize("family", FAMILIES)
texts = pytest.mark.parametrize("family", [name for name in FAMILIES if name != "vit"])


def build(family, implementation="ssa", **fields):
    auto, config = FAMILIES[family]
    torch.manual_seed(0)
    model = auto.from_config(type(config).from_dict(config.to_dict()), attn_implementation=implementation)
    return use_ssa(model, **fields) if fields else model


def inputs(family):
    if family == "vit":
        return {"pixel_values": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))}
    return {"input_ids": IDS}


def loss(model, family):
    labels = torch.tensor([0, 2]) if family == "vit" else IDS
    return model(**inputs(family), labels=labels).loss


@families
def test_from_pretrained_takes_the_name_and_trains(family, tmp_path):
    build(family, "sdpa").save_pretrained(tmp_path)
    model = FAMILIES[family][0].from_pretrained(tmp_path, attn_implementation="ssa").train()
    loss(model, family).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@families
@torch.no_grad()
def test_training_draws_anew_and_evaluation_is_dense(family):
    model = build(family)
    first, second = (model.train()(**inputs(family)).logits for _ in range(2))
    assert not torch.allclose(first, second)
    expected = build(family, "sdpa").eval()(**inputs(family)).logits
    torch.testing.assert_close(model.eval()(**inputs(family)).logits, expected)


@families
@torch.no_grad()
def test_keeping_every_source_trains_like_dense_attention(family):
    expected = build(family, "sdpa").train()(**inputs(family)).logits
    torch.testing.assert_close(build(family, ratio=1).train()(**inputs(family)).logits, expected, atol=1e-5, rtol=1e-4)


@texts
@pytest.mark.parametrize("fields", [{"ratio": 2}, {"kind": "local1d", "window_size": 8, "look_back": 1}], ids=str)
@torch.no_grad()
def test_padded_tokens_are_never_seen(family, fields):
    model = build(family, **fields).train()
    mask = torch.ones_like(IDS)
    mask[:, 18:] = 0
    outputs = []
    for filler in (5, 40):
        torch.manual_seed(3)
        ids = IDS.masked_fill(mask == 0, filler)
        outputs.append(model(input_ids=ids, attention_mask=mask).logits[:, :18])
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("fields", [{"ratio": 2}, {"kind": "local1d", "window_size": 8, "look_back": 1}], ids=str)
@torch.no_grad()
def test_language_models_never_see_the_future(family, fields):
    model = build(family, **fields).train()
    outputs = []
    for last in (5, 40):
        torch.manual_seed(3)
        ids = torch.cat((IDS[:, :15], torch.full((2, 9), last)), 1)
        outputs.append(model(input_ids=ids).logits[:, :15])
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generating_is_dense(family):
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    dense = build(family, "sdpa").eval().generate(IDS, **options)
    assert torch.equal(build(family).eval().generate(IDS, **options), dense)


@pytest.mark.parametrize("family", ["vit", "llama"])
def test_gradient_checkpointing_replays_the_draw(family):
    grads = []
    for enabled in (False, True):
        model = build(family).train()
        if enabled:
            model.gradient_checkpointing_enable()
        torch.manual_seed(7)
        loss(model, family).backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*grads):
        torch.testing.assert_close(checkpointed, plain)


@torch.no_grad()
def test_biases_on_pairs_are_read_at_the_sources_and_cross_attention_stays_dense():
    config = T5Config(vocab_size=50, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0)
    batch = {"input_ids": IDS, "labels": IDS[:, :20].contiguous(), "attention_mask": (IDS > 5).long()}
    outputs = []
    for implementation in ("sdpa", "ssa"):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration._from_config(config, attn_implementation=implementation).train()
        model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)
        for module in model.modules():
            module.ssa = SSAConfig(ratio=1)
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
        outputs.append(model(**batch).logits)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_windows_of_an_image_keep_the_class_token():
    model = build("vit", kind="local2d", window=(2, 2), sigma=0.0).train()
    pixels = inputs("vit")["pixel_values"]
    assert model(pixel_values=pixels).logits.isfinite().all()
    elsewhere = pixels.clone()
    elsewhere[:, :, 16:, 16:] = 0  # the last window
    tokens, changed = (
        model.vit(pixel_values=x, output_hidden_states=True).hidden_states[1] for x in (pixels, elsewhere)
    )
    grid = (tokens - changed).abs().amax((0, 2))[1:].view(4, 4)
    assert (tokens - changed)[:, 0].abs().max() > 0
    assert grid[2:, 2:].min() > 0 and grid[:2].max() == grid[2:, :2].max() == 0


def test_settings_travel_with_the_model(tmp_path):
    build("bert", kind="local1d", window_size=6).save_pretrained(tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="ssa")
    assert interface.settings_of(model.bert.encoder.layer[0].attention.self) == SSAConfig(kind="local1d", window_size=6)


def test_a_layer_may_have_settings_of_its_own():
    model = build("bert", ratio=4)
    first, second = (layer.attention.self for layer in model.bert.encoder.layer)
    first.ssa = SSAConfig(ratio=8)
    assert [interface.settings_of(layer).ratio for layer in (first, second)] == [8, 4]


def test_the_callback_ends_dense_and_counts_from_the_step_it_resumes(tmp_path):
    class Spy(SSACallback):
        seen = []

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            super().on_step_begin(args, state, control, model=model, **kwargs)
            self.seen.append(model.config._attn_implementation)

    def train(checkpoint=None):
        Spy.seen = []
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=10,
            save_steps=5,
            per_device_train_batch_size=2,
            report_to="none",
            disable_tqdm=True,
        )
        model = build("bert", "sdpa")
        data = TensorDataset(input_ids=IDS, labels=IDS)
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[Spy(finetune_fraction=0.3)])
        trainer.train(resume_from_checkpoint=checkpoint)
        return Spy.seen, model.config._attn_implementation

    assert train() == (["ssa"] * 7 + ["sdpa"] * 3, "sdpa")
    assert train(str(tmp_path / "checkpoint-5")) == (["ssa"] * 2 + ["sdpa"] * 3, "sdpa")


@torch.no_grad()
def test_an_ensemble_is_the_mean_of_its_passes():
    model = build("vit", ratio=2).eval()
    torch.manual_seed(5)
    with subsampling(model):
        passes = [model(**inputs("vit")).logits.softmax(-1) for _ in range(3)]
    ensemble = ssa_ensemble(model, inputs("vit"), n_samples=3, seed=5).logits
    torch.testing.assert_close(ensemble.exp(), sum(passes) / 3)
    assert not torch.allclose(passes[0], passes[1])


@torch.no_grad()
def test_an_ensemble_of_regressors_averages_predictions():
    model = build("vit", ratio=2)
    model.config.problem_type = "regression"
    torch.manual_seed(5)
    with subsampling(model.eval()):
        passes = [model(**inputs("vit")).logits for _ in range(2)]
    torch.testing.assert_close(ssa_ensemble(model, inputs("vit"), 2, seed=5).logits, (passes[0] + passes[1]) / 2)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluating"])
def test_an_ensemble_leaves_the_model_and_the_generator_as_they_were(mode):
    model = build("bert", "sdpa").train(mode)
    before, state = model.config.to_dict(), torch.get_rng_state()
    ssa_ensemble(model, inputs("bert"), n_samples=2, seed=0)
    assert model.config.to_dict() == before and model.training is mode
    assert model.config._attn_implementation == "sdpa" and torch.equal(torch.get_rng_state(), state)


def test_training_compiles_without_graph_breaks():
    model = build("bert", ratio=2).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    results = []
    for form in (model, compiled):
        torch.manual_seed(2)
        results.append(form(**inputs("bert")).logits)
    torch.testing.assert_close(*results)


WRONG = {
    "not both": lambda model: use_ssa(model, SSAConfig(), ratio=2),
    "ratio=0": lambda model: use_ssa(model, ratio=0),
    "finetune_fraction=2": lambda model: SSACallback(finetune_fraction=2),
    "n_samples=0": lambda model: ssa_ensemble(model, inputs("bert"), n_samples=0),
    "average='median'": lambda model: ssa_ensemble(model, inputs("bert"), average="median"),
    "no `logits`": lambda model: ssa_ensemble(model.bert, inputs("bert")),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_requests_say_what_is_allowed(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message](build("bert"))


def test_models_with_attention_of_their_own_are_refused():
    from transformers import FunnelConfig, FunnelModel

    config = FunnelConfig(
        vocab_size=20, block_sizes=[1], d_model=8, n_head=1, d_head=8, d_inner=8, num_decoder_layers=1
    )
    with pytest.raises(ValueError, match="FunnelModel"):
        use_ssa(FunnelModel(config))
