"""The label shift adapter on classifiers of Transformers and ours: identity at first, one checkpoint, the closed form when trained."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, MobileNetV2Config, ResNetConfig, Trainer, TrainingArguments

from hf_ext.adapters.label_shift_adapter import (
    LabelShiftAdapter,
    LabelShiftAdapterConfig,
    LabelShiftAdapterForImageClassification,
    LabelShiftAdapterForSequenceClassification,
    adapted_logits,
)
from hf_ext.adapters.label_shift_adapter.distributions import (
    expectation_maximization,
    imbalance_degree,
    is_balanced,
    long_tail,
    mapping_of_balanced,
    mapping_vector,
    prior_correction,
    sampled_distribution,
    training_distribution,
)
from hf_ext.layers.classifiers import classify_with_features, find_classifiers
from hf_ext.reproductions.training import TensorDataset
from hf_ext.training.label_shift import cache_features, linear_form, train_adapter
from tests.adapters.bases import BASES, adapted_class, resnet
from tests.passport import CHECKS, Subject, assert_same
from tests.tiny import images

bases = pytest.mark.parametrize("base", BASES)
LABELS = torch.tensor([0, 2])
EXACT = {"atol": 0, "rtol": 0}


def build(base, shaken=True, **fields):
    """In eval mode; the adapter off the identity if `shaken`."""
    torch.manual_seed(0)
    model = adapted_class(base)(LabelShiftAdapterConfig(base_config=BASES[base][1](), hidden_size=6, **fields))
    if shaken:
        with torch.no_grad():
            for parameter in model.adapter.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(base):
    return BASES[base][2]()


def skewed(model):
    return long_tail(model.config.num_labels, 5.0)


@bases
@torch.no_grad()
def test_a_new_adapter_changes_nothing(base):
    model = build(base, shaken=False)
    expected = model.base(**inputs(base)).logits
    torch.testing.assert_close(model(**inputs(base), label_distribution=skewed(model)).logits, expected)


@bases
@torch.no_grad()
def test_the_logits_are_the_definitions(base):
    model = build(base)
    pi = skewed(model)
    _, features = classify_with_features(model.base, model.classifier_names, inputs(base))
    weight, bias = linear_form(model)
    answer = model.adapter(imbalance_degree(model.mapping_vector, pi))
    answer = answer._replace(weight_delta=answer.weight_delta / len(model.classifiers))
    expected = adapted_logits(features, weight, bias, answer)
    torch.testing.assert_close(model(**inputs(base), label_distribution=pi).logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model.base(**inputs(base)).logits, expected, atol=1e-3)


@bases
@torch.no_grad()
def test_one_checkpoint_holds_the_base_under_its_own_names_and_the_adapter(base, tmp_path):
    model = build(base)
    model.set_source_distribution(skewed(model))
    model.label_distribution.copy_(skewed(model).flip(0))
    state = model.state_dict()
    original = type(model.base)(model.base.config).state_dict()
    adapter = {f"adapter.{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")}
    buffers = {"source_distribution", "mapping_vector", "label_distribution"}
    assert set(state) == {f"base.{name}" for name in original} | adapter | buffers
    model.save_pretrained(tmp_path)
    auto_class = getattr(transformers, f"AutoModelFor{BASES[base][0]}Classification")
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, state[name], **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    assert_same(loaded(**inputs(base)), model(**inputs(base)), **EXACT)


@bases
def test_only_the_adapter_learns_once_the_base_is_frozen(base):
    model = build(base)
    model.freeze_base()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    outputs = model(**inputs(base), labels=LABELS)
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.adapter.parameters())
    assert all(p.grad is None for p in model.base.parameters()) and not model.base.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.base.state_dict().items())


CANNOT = {
    ("resnet", "load_in_8bit"): "a ResNet's only linear layer is its classifier",
    ("resnet", "gradient_checkpointing"): "upstream's ResNet has none",
}
PASSPORT = ("gradients", "gradient_checkpointing", "lora", "load_in_8bit", "disk_offload", "export", "compile")


@pytest.mark.parametrize("base", ["resnet", "bert", "audio spectrogram transformer"])
@pytest.mark.parametrize("check", PASSPORT)
def test_passport(base, check):
    if reason := CANNOT.get((base, check)):
        pytest.skip(reason)
    config = LabelShiftAdapterConfig(base_config=BASES[base][1](), hidden_size=6)
    CHECKS[check](Subject(adapted_class(base), config, inputs(base) | {"labels": LABELS}))


@pytest.mark.parametrize(
    ("labels", "features", "hidden", "predicts", "count"),
    [
        (10, 640, 100, True, 200 + 101 * (1300 + 6400)),
        (10, 640, 100, None, 200 + 101 * (1300 + 6400)),
        (1000, 2048, 100, None, 200 + 101 * 6096),
        (1000, 2048, 100, True, 200 + 101 * (6096 + 2_048_000)),
        (2, 3, 7, False, 14 + 8 * 10),
    ],
)
def test_the_adapters_size(labels, features, hidden, predicts, count):
    with torch.device("meta"):
        adapter = LabelShiftAdapter(labels, features, hidden, predicts)
    assert sum(p.numel() for p in adapter.parameters()) == count


@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    labels=st.integers(2, 7),
    features=st.integers(1, 9),
    hidden=st.integers(1, 12),
    batch=st.integers(0, 4),
    predicts=st.booleans(),
    exponent=st.floats(-1, 1),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_of_any_size_it_starts_as_the_identity_for_any_distribution(
    labels, features, hidden, batch, predicts, exponent, seed
):
    torch.manual_seed(seed)
    source = torch.rand(labels) + 0.01
    pi = sampled_distribution(source / source.sum(), exponent)
    degree = imbalance_degree(mapping_vector(source), pi)
    z, weight, bias = torch.randn(batch, features), torch.randn(labels, features), torch.randn(labels)
    answer = LabelShiftAdapter(labels, features, hidden, predicts)(degree)
    assert -1 - 1e-5 <= degree <= 1 + 1e-5 and abs(pi.sum() - 1) < 1e-5
    torch.testing.assert_close(adapted_logits(z, weight, bias, answer), nn.functional.linear(z, weight, bias))


def test_the_mapping_follows_the_sources_order_and_keeps_ties():
    assert mapping_vector(torch.tensor([0.1, 0.4, 0.1, 0.3, 0.1])).tolist() == [0.0, 1.0, -0.5, 0.5, -1.0]


def test_equal_classes_are_no_imbalance():
    assert imbalance_degree(mapping_of_balanced(7), torch.full((7,), 1 / 7)).abs() < 1e-6


def test_a_balanced_source_is_trained_on_a_long_tail_of_random_order():
    model = build("resnet")
    model.set_source_distribution(torch.tensor([100, 103, 99, 101]))
    drawn = training_distribution(model.source_distribution, model.mapping_vector)
    assert is_balanced(model.source_distribution) and abs(drawn.max() / drawn.min() - 100) < 0.1
    assert torch.equal(drawn.argsort(descending=True), model.mapping_vector.argsort(descending=True))


def test_training_draws_the_source_its_inverse_and_equal_classes():
    model = build("resnet")
    model.set_source_distribution(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    torch.manual_seed(0)
    drawn = {tuple(round(x, 4) for x in model.draw_distribution().tolist()) for _ in range(40)}
    tail = torch.tensor([1.0, 2.0, 4.0, 8.0]) / 15
    assert drawn == {tuple(round(x, 4) for x in p.tolist()) for p in (tail, tail.flip(0), torch.full((4,), 0.25))}


def test_without_exponents_training_draws_anything_in_between():
    model = build("resnet", exponents=None)
    model.set_source_distribution(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert len({model.draw_distribution()[0].item() for _ in range(20)}) == 20


def test_the_losss_minimum_is_the_classifier_for_the_target():
    """Logits off the closed form by anything but a constant cost more."""
    torch.manual_seed(0)
    model = build("resnet")
    source, target = torch.tensor([0.6, 0.2, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    posterior = torch.randn(500, 4).mul(2).log_softmax(-1)
    labels = torch.multinomial(posterior.exp(), 1)[:, 0]
    from hf_ext.training.label_shift import generalized_logit_adjusted_loss as loss

    best = prior_correction(posterior, source, target)
    assert model.config.tau == 1
    torch.testing.assert_close(
        loss(best, labels, source, target), nn.functional.cross_entropy(posterior, labels), atol=1e-5, rtol=1e-5
    )


def test_a_trained_adapter_approaches_the_closed_form(tmp_path):
    """Blobs whose classes overlap: the adapted classifier decides nearly as prior correction does, for distributions seen and unseen."""
    torch.manual_seed(0)
    source = long_tail(4, 20.0)
    centres = torch.randn(4, 16)
    labels = torch.multinomial(source, 6000, replacement=True)
    features = centres[labels] + 1.5 * torch.randn(6000, 16)
    model = build("resnet", shaken=False)
    head = model.classifiers[0]
    with torch.no_grad():  # the exact posterior of blobs is linear
        head.weight.copy_(centres / 1.5**2)
        head.bias.copy_(source.log() - centres.square().sum(1) / (2 * 1.5**2))
    train_adapter(
        model,
        features,
        labels,
        str(tmp_path),
        num_train_epochs=10,
        learning_rate=2e-3,
        disable_tqdm=True,
        seed=0,
    )
    assert torch.equal(model.mapping_vector, mapping_vector(source))
    weight, bias = linear_form(model)
    with torch.no_grad():
        for exponent in (0.0, -0.5, -1.0):
            pi = sampled_distribution(model.source_distribution, exponent)
            plain = nn.functional.linear(features, weight, bias)
            ours = adapted_logits(features, weight, bias, model.adapter(imbalance_degree(model.mapping_vector, pi)))
            oracle = prior_correction(plain, model.source_distribution, pi).softmax(-1)
            without, remaining = ((x.softmax(-1) - oracle).abs().sum(-1).mean() for x in (plain, ours))
            assert remaining < without / 3, f"{exponent}: {remaining} of {without} remains"


@bases
def test_features_are_computed_once_and_the_adapter_learns_from_them(base, tmp_path):
    model = build(base, shaken=False)
    before = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    features, labels = cache_features(model, [inputs(base) | {"labels": LABELS}] * 3)
    assert len(features) == len(labels) == 6 and features.shape[1] == model.adapter.feature_dim
    train_adapter(model, features, labels, str(tmp_path), num_train_epochs=2, disable_tqdm=True)
    assert model.adapter.fc2.weight.abs().max() > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.base.state_dict().items())


def test_trainer_trains_the_whole_on_images_too(tmp_path):
    model = build("resnet", shaken=False)
    model.freeze_base()
    data = TensorDataset(pixel_values=images(32, batch=8), labels=torch.arange(8) % 4)
    arguments = TrainingArguments(str(tmp_path), max_steps=3, report_to="none", disable_tqdm=True, save_strategy="no")
    Trainer(model, arguments, train_dataset=data).train()
    assert model.adapter.fc2.weight.abs().max() > 0


def test_from_base_takes_a_folder_or_a_model_and_copies_it(tmp_path):
    base = transformers.ResNetForImageClassification(resnet()).eval()
    base.save_pretrained(tmp_path)
    counts = torch.tensor([5, 1, 3, 2])
    for source in (base, tmp_path):
        model = LabelShiftAdapterForImageClassification.from_base(source, source_distribution=counts, hidden_size=5)
        torch.testing.assert_close(model(images(32)).logits, base(images(32)).logits)
        torch.testing.assert_close(model.source_distribution, counts / 11)
        assert model.adapter.fc1.out_features == 5 and type(base.classifier[1]) is nn.Linear


def test_a_half_precision_base_keeps_its_type():
    base = transformers.ResNetForImageClassification(resnet()).bfloat16()
    model = LabelShiftAdapterForImageClassification.from_base(base)
    assert model(images(32).bfloat16()).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_distributions_stay_in_single_precision_when_loaded_in_half(dtype, tmp_path):
    model = build("resnet")
    model.save_pretrained(tmp_path)
    loaded = LabelShiftAdapterForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {buffer.dtype for name, buffer in loaded.named_buffers(recurse=False)} == {torch.float32}
    expected = model(images(32)).logits
    torch.testing.assert_close(loaded(images(32).to(dtype)).logits.float(), expected, atol=0.02, rtol=0.02)


def test_expectation_maximization_finds_the_targets_distribution():
    torch.manual_seed(0)
    source, target = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.2, 0.7])
    centres = 2 * torch.randn(3, 4)
    labels = torch.multinomial(target, 4000, replacement=True)
    x = centres[labels] + torch.randn(4000, 4)
    log_posteriors = x @ centres.T - centres.square().sum(1) / 2 + source.log()
    torch.testing.assert_close(expectation_maximization(log_posteriors, source), target, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"tau": -1}, "tau"),
        ({"momentum": 0}, "momentum"),
        ({"momentum": 1.5}, "momentum"),
        ({"exponents": []}, "exponents"),
        ({"exponents": [float("nan")]}, "exponents"),
        ({"base_config": resnet(num_labels=1)}, "num_labels"),
        ({"base_config": resnet(problem_type="multi_label_classification")}, "problem_type"),
    ],
)
def test_an_impossible_configuration_names_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        LabelShiftAdapterConfig(**{"base_config": resnet(), **fields})


def test_classes_are_the_bases():
    config = LabelShiftAdapterConfig(base_config=ResNetConfig(id2label={0: "cat", 1: "dog", 2: "cow"}))
    assert config.num_labels == 3 and config.id2label[2] == "cow"


@pytest.mark.parametrize(
    "counts", [[1, 2, 3], [[1, 2, 3, 4]], [1, 2, 3, -1], [0, 0, 0, 0], [1, 2, 3, float("nan")]], ids=str
)
def test_a_wrong_distribution_is_refused(counts):
    with pytest.raises(ValueError, match="label distribution"):
        build("resnet").set_source_distribution(torch.tensor(counts))


WRONG = {
    "shape": lambda model: model(images(32), label_distribution=torch.ones(3)),
    "`labels` must be classes": lambda model: train_adapter(model, torch.rand(2, 16), torch.tensor([0, 4]), "unused"),
    "needs `labels`": lambda model: cache_features(model, [{"pixel_values": images(32)}]),
    "no batches": lambda model: cache_features(model, []),
    "of which there is no classifier": lambda model: LabelShiftAdapterForImageClassification(
        LabelShiftAdapterConfig(base_config=transformers.ViTMAEConfig())
    ),
    "no linear classifier": lambda model: find_classifiers(model.base.resnet),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_requests_say_what_is_the_matter(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message](build("resnet"))


def test_a_base_with_other_logits_than_its_last_layers_is_not_cached():
    """RMT with token labels adds a second classifier's maximum over positions."""
    config = BASES["rmt"][1]()
    config = type(config)(**{**config.to_diff_dict(), "token_label": True})
    model = LabelShiftAdapterForImageClassification(LabelShiftAdapterConfig(base_config=config)).eval()
    with pytest.raises(ValueError, match="freeze_base"):
        cache_features(model, [{"pixel_values": images(40), "labels": LABELS}])


def test_a_text_model_is_told_apart_from_an_image_model_by_its_base():
    base = MobileNetV2Config(num_labels=3, depth_multiplier=0.35)
    model = LabelShiftAdapterForImageClassification(LabelShiftAdapterConfig(base_config=base))
    assert type(model.base).__name__ == "MobileNetV2ForImageClassification"
    config = LabelShiftAdapterConfig(base_config=replace_config(BertConfig))
    assert type(LabelShiftAdapterForSequenceClassification(config).base).__name__ == "BertForSequenceClassification"


def replace_config(kind):
    return kind(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=5)
