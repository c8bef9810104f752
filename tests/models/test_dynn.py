"""Multi-exit classifiers: sizes, leaving a batch, exits on upstream's classifiers, training, and what is refused."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

from hf_ext.convert import convert_checkpoint
from hf_ext.models.dynn import (
    MultiExitConfig,
    MultiExitForImageClassification,
    MultiExitForSequenceClassification,
    MultiExitImageProcessor,
    MultiExitTextConfig,
)
from hf_ext.training.dynn import ExitLossCallback
from tests.models.vision import count_parameters, used
from tests.passport import CHECKS, Subject
from tests.tiny import OTHERS, TINY, images, seeded, tokens

PARAMETERS = {
    "vgg16bn": 15_468_683,
    "vgg16bn-all": 15_673_567,
    "resnet56": 891_676,
    "resnet56-all": 1_017_347,
    "mobilenet": 3_483_520,
    "mobilenet-all": 3_923_927,
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}
TEXTS = {"vocab_size": 61, "max_position_embeddings": 16, "pad_token_id": 0}
MAPS = {
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "swin": SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, drop_path_rate=0.0),
    "nextvit": TINY["nextvit"]()[0],
    "dinov2": Dinov2Config(**SMALL | {"num_hidden_layers": 2}, image_size=32, patch_size=8),
}
BASES = {
    "vit": (ViTForImageClassification, ViTConfig(**SMALL, image_size=16, patch_size=4)),
    "deit": (DeiTForImageClassification, DeiTConfig(**SMALL, image_size=16, patch_size=4)),
    "deit with a teacher": (
        DeiTForImageClassificationWithTeacher,
        DeiTConfig(**SMALL, image_size=16, patch_size=4),
    ),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_labels=3),
    ),
    "bert": (BertForSequenceClassification, BertConfig(**SMALL, **TEXTS)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**SMALL, **TEXTS)),
    "gpt2": (
        GPT2ForSequenceClassification,
        GPT2Config(vocab_size=61, n_positions=16, n_embd=32, n_layer=3, n_head=4, num_labels=3, pad_token_id=0),
    ),
    "llama": (LlamaForSequenceClassification, LlamaConfig(**SMALL, **TEXTS)),
}


def config(family: str, **fields) -> MultiExitConfig:
    """A small network of that family, or on that backbone."""
    fields = {"num_labels": 4} | fields
    if family in MAPS:
        return MultiExitConfig(family="backbone", backbone_config=deepcopy(MAPS[family]), **fields)
    structure = {
        "vgg16bn": {"hidden_sizes": [8, 8, 16], "strides": [1, 2, 2], "fc_sizes": [16, 16], "exits": [1, 0, 1, 1]},
        "resnet56": {"hidden_sizes": [8, 16], "depths": [2, 2], "stem_size": 8, "exits": [[0, 1], [1, 0]]},
        "mobilenet": {"hidden_sizes": [8, 16, 16], "strides": [1, 2, 1], "stem_size": 8, "exits": [1, 1, 0]},
    }
    return MultiExitConfig(**{"family": family, "image_size": 16} | structure[family] | fields)


def build(family: str, seed: int = 0, **fields) -> MultiExitForImageClassification:
    torch.manual_seed(seed)
    return used(MultiExitForImageClassification(config(family, **fields))).eval()


def pictures(family: str, batch: int = 6) -> torch.Tensor:
    return images(32 if family in MAPS else 16, batch=batch)


def base_of(kind: str) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A classifier of Transformers and inputs, texts with padding."""
    torch.manual_seed(0)
    model_class, base_config = BASES[kind]
    model = used(model_class(deepcopy(base_config))).eval()
    if model.main_input_name == "pixel_values":
        return model, {"pixel_values": images(32 if kind == "resnet" else 16, batch=4)}
    ids = tokens(61, batch=4)
    ids[1, 9:] = 0
    return model, {"input_ids": ids, "attention_mask": (ids != 0).long()}


def with_exits(kind: str, **fields) -> tuple[PreTrainedModel, PreTrainedModel, dict[str, torch.Tensor]]:
    base, inputs = base_of(kind)
    of_images = base.main_input_name == "pixel_values"
    cls = MultiExitForImageClassification if of_images else MultiExitForSequenceClassification
    return base, cls.from_base(base, **fields), inputs


def middle_threshold(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
    """One at which half of the samples leave at the first exit."""
    with torch.no_grad():
        logits = model(**inputs, exit_mode="all").exit_logits[0]
    confidence = logits.softmax(-1).amax(-1).sort().values
    return confidence[len(confidence) // 2 - 1 : len(confidence) // 2 + 1].mean().item()


def one_by_one(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **options) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule as it is written, sample by sample, on the logits of all classifiers."""
    output = model(**inputs, exit_mode="all")
    classifiers = torch.stack([*output.exit_logits, output.logits])
    confidence = classifiers.softmax(-1).amax(-1)
    index = []
    for sample in range(classifiers.shape[1]):
        confident = (confidence[:-1, sample] >= options["threshold"]).nonzero().flatten().tolist()
        if options.get("fallback") == "most_confident":
            confident.append(int(confidence[:, sample].argmax()))
        index.append((*confident, len(classifiers) - 1)[0])
    index = torch.tensor(index)
    return classifiers[index, torch.arange(len(index))], index


@pytest.mark.parametrize("name", MultiExitConfig.PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert count_parameters(MultiExitForImageClassification, MultiExitConfig.from_preset(name)) == PARAMETERS[name]


@pytest.mark.parametrize("family", ["vgg16bn", "resnet56", "mobilenet"])
def test_networks_for_tiny_imagenet_take_64_pixels(family):
    with torch.device("meta"):
        model = MultiExitForImageClassification(
            MultiExitConfig.from_preset(family, image_size=64, num_labels=200)
        ).eval()
        output = model(torch.empty(1, 3, 64, 64), exit_mode="all")
    assert [tuple(x.shape) for x in (*output.exit_logits, output.logits)] == [(1, 200)] * (model.config.num_exits + 1)


@torch.no_grad()
@pytest.mark.parametrize("fallback", ["network_output", "most_confident"])
@pytest.mark.parametrize(
    "family", ["vgg16bn", "resnet56", "mobilenet", "resnet", "convnext", "swin", "nextvit", "dinov2"]
)
def test_a_batch_is_served_as_each_sample_by_itself(family, fallback):
    model, inputs = build(family), {"pixel_values": pictures(family)}
    threshold = middle_threshold(model, inputs)
    logits, index = one_by_one(model, inputs, threshold=threshold, fallback=fallback)
    output = model(**inputs, threshold=threshold, fallback=fallback)
    assert output.exit_index.tolist() == index.tolist()
    assert fallback != "network_output" or len(set(index.tolist())) > 1, (
        "the case shows nothing: all samples take one exit"
    )
    torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.confidence, output.logits.softmax(-1).amax(-1), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
def test_exits_leave_the_answers_of_an_upstream_classifier_as_they_are(kind):
    base, model, inputs = with_exits(kind)
    torch.testing.assert_close(model(**inputs, exit_mode="final").logits, base(**inputs).logits, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
def test_exits_on_an_upstream_classifier_serve_a_batch_as_each_sample_by_itself(kind):
    _, model, inputs = with_exits(kind)
    threshold = middle_threshold(model, inputs)
    logits, index = one_by_one(model, inputs, threshold=threshold)
    output = model(**inputs, threshold=threshold)
    assert output.exit_index.tolist() == index.tolist()
    torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "resnet", "bert"])
def test_an_upstream_checkpoint_gets_exits_from_its_folder(tmp_path, kind):
    base, inputs = base_of(kind)
    base.save_pretrained(tmp_path)
    of_images = base.main_input_name == "pixel_values"
    cls = MultiExitForImageClassification if of_images else MultiExitForSequenceClassification
    model = cls.from_base(tmp_path)
    assert model.config.id2label == base.config.id2label
    torch.testing.assert_close(model(**inputs, exit_mode="final").logits, base(**inputs).logits, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_padding_changes_no_exit(pooling):
    model, inputs = with_exits("bert", exit_pooling=pooling)[1:]
    padded = {name: torch.cat([x, x.new_zeros(len(x), 3)], 1) for name, x in inputs.items()}
    for ours, expected in zip(
        model(**padded, exit_mode="all").exit_logits, model(**inputs, exit_mode="all").exit_logits
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


class Counting(torch.nn.Module):
    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module, self.samples = module, []

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        self.samples.append(len(hidden_states))
        return self.module(hidden_states, *args, **kwargs)


@torch.no_grad()
def test_samples_that_left_are_not_computed_any_more():
    model = build("mobilenet")
    inputs = {"pixel_values": pictures("mobilenet")}
    threshold = middle_threshold(model, inputs)
    index = model(**inputs, threshold=threshold).exit_index
    last = model.network.blocks[2] = Counting(model.network.blocks[2])
    model(**inputs, threshold=threshold)
    assert last.samples == [int((index == 2).sum())]


@torch.no_grad()
def test_the_network_stops_when_everybody_has_left():
    model = build("mobilenet")
    last = model.network.blocks[2] = Counting(model.network.blocks[2])
    assert model(pictures("mobilenet"), threshold=0.0).exit_index.tolist() == [0] * 6
    assert last.samples == []


@torch.no_grad()
def test_the_static_network_computes_no_exit():
    model = build("resnet56")
    counts = [Counting(exit) for exit in model.exits.values()]
    for name, counting in zip(model.exits, counts):
        model.exits[name] = counting
    model(pictures("resnet56"), exit_mode="final")
    assert [counting.samples for counting in counts] == [[], []]


@torch.no_grad()
@pytest.mark.parametrize("fallback", ["network_output", "most_confident"])
def test_a_compiled_model_leaves_at_the_same_exits(fallback):
    model, inputs = build("resnet56"), {"pixel_values": pictures("resnet56")}
    options = {"threshold": middle_threshold(model, inputs), "fallback": fallback}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)(**inputs, **options)
    expected = model(**inputs, **options)
    assert compiled.exit_index.tolist() == expected.exit_index.tolist()
    torch.testing.assert_close(compiled.logits, expected.logits, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_weighted_sum_over_all_classifiers():
    model, labels = build("resnet56"), torch.tensor([0, 1, 2, 3, 0, 1])
    model.exit_loss_progress = 0.5
    output = model(pictures("resnet56"), labels=labels)
    losses = [torch.nn.functional.cross_entropy(x, labels) for x in (*output.exit_logits, output.logits)]
    torch.testing.assert_close(output.loss, 0.085 * losses[0] + 0.16 * losses[1] + losses[2])


def test_six_exits_weigh_what_the_authors_have():
    weights = MultiExitConfig.from_preset("resnet56").largest_exit_loss_weights
    assert weights == pytest.approx([0.15, 0.3, 0.45, 0.6, 0.75, 0.9])


def test_more_than_six_exits_weigh_up_to_as_much():
    weights = MultiExitConfig.from_preset("mobilenet-all").largest_exit_loss_weights
    assert weights == pytest.approx([0.9 * (i + 1) / 13 for i in range(13)])


def test_training_the_exits_alone_leaves_the_network_untouched():
    model = build("resnet56", train_mode="ic_only").train()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    first = model(pictures("resnet56"), labels=torch.arange(6) % 4).loss
    first.backward()
    optimizer.step()
    assert model(pictures("resnet56"), labels=torch.arange(6) % 4).loss < first
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_network_that_was_frozen_is_loaded_frozen(tmp_path):
    build("resnet56", train_mode="ic_only").save_pretrained(tmp_path)
    loaded = MultiExitForImageClassification.from_pretrained(tmp_path)
    asking = {name.partition(".")[0] for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert asking == {"exits"}


class Samples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.rand(3, 16, 16, generator=seeded(index)), "labels": torch.tensor(index % 3)}


@pytest.mark.parametrize("train_mode", ["ic_only", "sdn"])
def test_trainer_trains_exits_on_an_upstream_vit(tmp_path, train_mode):
    base, model, _ = with_exits("vit", train_mode=train_mode)
    seen = []

    class Watch(ExitLossCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append(model.exit_loss_progress)

    arguments = TrainingArguments(
        str(tmp_path), max_steps=20, per_device_train_batch_size=4, report_to="none", learning_rate=1e-3,
        save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Samples(), eval_dataset=Samples(), callbacks=[Watch()])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert seen == [step / 20 for step in range(20)] and model.exit_loss_progress == 1.0
    same = all(torch.equal(a, b) for a, b in zip(base.state_dict().values(), model.network.base.state_dict().values()))
    assert same == (train_mode == "ic_only")


@pytest.mark.parametrize("check", sorted(set(CHECKS) - {"distributed", "onnx", "auto_class", "config_round_trip"}))
@pytest.mark.parametrize("family", ["vgg16bn", "mobilenet", "resnet", "vit", "gpt2"])
def test_every_family_passes_the_passport(family, check):
    if family in BASES and family != "resnet":
        base, inputs = base_of(family)
        cls = MultiExitForImageClassification if family == "vit" else MultiExitForSequenceClassification
        subject = Subject(cls, cls.config_class(family="encoder", backbone_config=base.config, exits=[1, 1, 0]), inputs)
    else:
        subject = Subject(MultiExitForImageClassification, config(family), {"pixel_values": pictures(family)})
    subject.inputs["labels"] = torch.arange(len(next(iter(subject.inputs.values())))) % 3
    if (family, check) == ("resnet", "attention_implementations"):
        pytest.skip("a ResNet has no attention, and upstream's refuses to be asked for one")
    CHECKS[check](subject)


def test_two_labels_survive_saving(tmp_path):
    config("resnet56", num_labels=2).save_pretrained(tmp_path)
    assert MultiExitConfig.from_pretrained(tmp_path).num_labels == 2


def test_the_pipeline_serves_it(tmp_path):
    model = build("resnet56")
    model.save_pretrained(tmp_path)
    MultiExitImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    from PIL import Image

    (best, *_) = pipeline("image-classification", str(tmp_path))(Image.new("L", (30, 20), 128))
    assert best["label"] in model.config.label2id


def test_arguments_of_both_repositories_convert():
    shared = {"network_type": "mobilenet", "cfg": [8, (16, 2)], "num_classes": 3, "input_size": 32, "epochs": 100}
    from hf_ext.convert.dynn import config as converted

    for name in ("add_ic", "add_output"):
        assert converted(shared | {name: [1, 0]}).exits == [1, 0]
    assert converted(shared | {"add_ic": [1, 0]}).strides == [1, 2]


def test_an_unknown_argument_of_the_reference_is_named():
    with pytest.raises(ValueError, match=r"dilation.*known are.*num_blocks"):
        convert_checkpoint("dynn", {}, {"network": "ResNet_SDN", "dilation": 2})


@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    family=st.sampled_from(["vgg16bn", "resnet56", "mobilenet"]),
    size=st.integers(8, 21),
    batch=st.integers(1, 3),
    labels=st.integers(2, 5),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
@torch.no_grad()
def test_any_size_and_threshold_give_one_answer_for_each_image(family, size, batch, labels, threshold):
    model = MultiExitForImageClassification(config(family, image_size=size, num_labels=labels)).eval()
    output = model(images(size, batch=batch), threshold=threshold)
    assert output.logits.shape == (batch, labels)
    assert output.exit_index.max() <= model.config.num_exits


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "alexnet"}, "`family` must be one of vgg16bn"),
        ({"fallback": "first"}, "`fallback` must be one of network_output, most_confident"),
        ({"train_mode": "exits"}, "`train_mode` must be one of sdn, ic_only"),
        ({"threshold": 1.5}, "`threshold` must be a probability"),
        ({"exits": [1, 0]}, "`exits` must hold a 0 or 1 for each of the 27 blocks"),
        ({"exits": [0] * 27}, "a 1 at least once"),
        ({"num_labels": 1}, "`num_labels` must be at least 2"),
        ({"depths": [3, 3]}, "`depths` must have a number for each of the 3"),
        ({"family": "mobilenet", "strides": [1, 3]}, "`strides` must be a 1 or 2 for each of the 13"),
        ({"family": "vgg16bn", "image_size": 16}, "`image_size` must be at least 32"),
        ({"family": "encoder"}, "`backbone_config` belongs to the families backbone and encoder"),
        ({"backbone_config": {"model_type": "vit"}}, "`backbone_config` belongs to .* 'resnet56' was given a vit"),
        ({"exit_loss_weights": [1.0]}, "`exit_loss_weights` must hold a number for each of the 6 exits"),
        ({"exit_pooling": "max"}, "`exit_pooling` must be one of None, first, mean, last"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MultiExitConfig(**fields)


def test_texts_have_an_encoder():
    with pytest.raises(ValueError, match="`family` must be 'encoder' for texts"):
        MultiExitTextConfig(family="backbone", backbone_config={"model_type": "bert"})


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 3, 32, 32), "must be 16x16"),
        (torch.zeros(2, 1, 16, 16), "must have the shape"),
        (torch.zeros(3, 16, 16), "must have the shape"),
        (torch.zeros(0, 3, 16, 16), "holds no pixels"),
        (None, "not nothing"),
    ],
)
def test_images_of_another_shape_are_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        build("resnet56")(pixels)


def test_a_text_is_given_once():
    model = MultiExitForSequenceClassification(OTHERS["MultiExitTextConfig"]()[0])
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model()


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="`exit_mode` must be one of all, final, dynamic"):
        build("resnet56")(pictures("resnet56"), exit_mode="early")


def test_a_classifier_whose_layers_are_not_known_gets_no_exits():
    with pytest.raises(ValueError, match=r"from_base knows vit, deit, bert.*not 'swin'"):
        MultiExitForImageClassification.from_base(SwinForImageClassification(MAPS["swin"]))


def test_the_smallest_network_is_the_passports():
    assert TINY["dynn"]()[0].num_exits == 2
