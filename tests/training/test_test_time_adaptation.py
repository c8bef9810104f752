"""Test-time adaptation of upstream classifiers, alone and with a label shift adapter: what changes, what comes back, what is refused."""

import pytest
import torch
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_ext.adapters.label_shift_adapter import LabelShiftAdapterForImageClassification
from hf_ext.adapters.label_shift_adapter.distributions import long_tail, prior_correction
from hf_ext.training.test_time_adaptation import (
    METHODS,
    BalancedReservoir,
    LabelDistribution,
    Lame,
    Note,
    Tent,
    TestTimeAdapter,
    joined,
)
from tests.adapters.bases import BASES, LABELS, NO_DROPOUT, WIDTHS, adapted_class, resnet

methods = pytest.mark.parametrize("method", METHODS)
COUNTS = torch.tensor([8.0, 4.0, 2.0, 1.0])


def stream(batches=3, size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 16, 16, generator=generator) * 1.5 + 0.5 for _ in range(batches)]


def classifier(seed=0):
    """A ResNet with running statistics and scales of its own."""
    torch.manual_seed(seed)
    model = ResNetForImageClassification(resnet()).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for batch in stream(4, seed=2):
            model(batch)
    return model.eval()


def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**WIDTHS, **NO_DROPOUT, **LABELS, image_size=16, patch_size=4)).eval()


def adapted(seed=0, base=None):
    """With a label shift adapter that is off the identity."""
    model = LabelShiftAdapterForImageClassification.from_base(base or classifier(seed), COUNTS, momentum=0.3)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def engine(model, method, **options):
    needs_source = method == "prior_correction" and isinstance(model, ResNetForImageClassification)
    return TestTimeAdapter(model, method, **({"source_distribution": COUNTS} if needs_source else {}), **options)


def logits(adapter, batches=None):
    return torch.cat([adapter(batch).logits for batch in batches or stream()])


def everything(model):
    """All that a method may change."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {
            name: (type(module), module.training, getattr(module, "momentum", None))
            for name, module in model.named_modules()
        },
    )


@methods
@pytest.mark.parametrize("make", [classifier, adapted], ids=["upstream", "with adapter"])
def test_reset_gives_the_model_back_and_the_stream_can_be_run_again(method, make):
    model = make()
    state, *rest = everything(model)
    adapter = engine(model, method, **({"update_every": 10} if method == "note" else {}))
    first = logits(adapter)
    adapter.reset()
    after, *rest_after = everything(model)
    assert rest_after == rest and list(after) == list(state)
    for name, tensor in state.items():
        torch.testing.assert_close(after[name], tensor, atol=0, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(logits(adapter), first, atol=0, rtol=0)


@methods
def test_the_adapter_is_told_the_estimate_of_the_batches_before(method):
    """By hand: the base method on logits for the running distribution, which then moves towards the mean probabilities."""
    if method == "prior_correction":
        pytest.skip("it takes the adapter's place")
    model, by_hand = adapted(), adapted()
    adapter, plain = engine(model, method), engine(by_hand, method, label_shift=True, estimate_momentum=1e-9)
    pi = torch.full((4,), 0.25)
    for batch in stream():
        by_hand.label_distribution.copy_(pi)
        expected = plain(batch).logits
        output = adapter(batch)
        torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=1e-4)
        pi = 0.7 * pi + 0.3 * expected.softmax(-1).mean(0)
        torch.testing.assert_close(output.label_distribution, pi)
        torch.testing.assert_close(model.label_distribution, pi)


def test_a_saved_stream_goes_on_where_it_stopped(tmp_path):
    model = adapted()
    whole = engine(model, "iabn")
    expected = logits(whole)[16:]
    whole.reset()
    logits(whole, stream()[:2])
    distribution = model.label_distribution.clone()
    whole._undo.close()  # the norms, but not the estimate
    model.save_pretrained(tmp_path)
    loaded = LabelShiftAdapterForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.label_distribution, distribution)
    torch.testing.assert_close(engine(loaded, "iabn")(stream()[2]).logits, expected)


def test_left_out_the_adapter_changes_nothing():
    model, base = adapted(), classifier()
    torch.testing.assert_close(logits(engine(model, "tent", label_shift=False)), logits(engine(base, "tent")))
    assert torch.equal(model.label_distribution, torch.full((4,), 0.25))


def test_updating_before_uses_the_batchs_own_estimate():
    model = adapted()
    output = engine(model, "none", update="before")(stream()[0])
    with torch.no_grad():
        first = model(stream()[0], label_distribution=torch.full((4,), 0.25)).logits
        pi = 0.7 * 0.25 + 0.3 * first.softmax(-1).mean(0)
        torch.testing.assert_close(output.logits, model(stream()[0], label_distribution=pi).logits)
    torch.testing.assert_close(output.label_distribution, pi)


def test_expectation_maximization_estimates_under_a_shift():
    """Blobs of overlapping classes: the mean of the probabilities is drawn towards the source, the most likely distribution is not."""
    torch.manual_seed(0)
    source, target = COUNTS / 15, long_tail(4, 20.0).flip(0)
    centres = torch.randn(4, 4)
    x = centres[torch.multinomial(target, 4000, replacement=True)] + torch.randn(4000, 4)
    posterior = x @ centres.T - centres.square().sum(1) / 2 + source.log()
    found = {}
    for estimator in ("mean", "em"):
        running = LabelDistribution(source, source.clone(), 1.0, estimator)
        running.observe(posterior)
        found[estimator] = (running.current - target).abs().sum()
    assert found["em"] < 0.1 < found["mean"]


def test_tent_learns_the_norms_only():
    model = classifier()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    logits(engine(model, "tent", lr=1e-2))
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "normalization" in name}


def test_tents_entropy_falls_on_a_batch_that_comes_again():
    adapter = engine(classifier(), "tent", lr=1e-2)
    batch = stream()[0]
    entropies = [-(y.softmax(-1) * y.log_softmax(-1)).sum(-1).mean() for y in (adapter(batch).logits for _ in range(6))]
    assert entropies[-1] < entropies[0]


def test_an_episode_begins_with_each_batch():
    adapter = engine(classifier(), "tent", lr=1e-2, episodic=True, steps=2)
    first, second = (adapter(stream()[0]).logits for _ in range(2))
    torch.testing.assert_close(second, first, atol=0, rtol=0)


def test_steps_are_updates_on_the_same_batch():
    """The logits of two steps are those of a second call of one."""
    batch = stream()[0]
    once, twice = engine(classifier(), "tent", lr=1e-2), engine(classifier(), "tent", lr=1e-2, steps=2)
    once(batch)
    torch.testing.assert_close(twice(batch).logits, once(batch).logits)


@pytest.mark.parametrize("options", [{"optimizer": "SGD", "lr": 0.05}, {"weight_decay": 0.5}], ids=str)
def test_tents_optimizer_is_a_choice(options):
    outputs = [logits(engine(classifier(), "tent", **chosen))[8:] for chosen in ({}, options)]
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("norm_types", ["LayerNorm", (nn.LayerNorm,)], ids=str)
def test_tent_adapts_layer_norms_on_request(norm_types):
    model = vit()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    logits(engine(model, "tent", norm_types=norm_types, lr=1e-2))
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all("norm" in name for name in changed)


def test_tent_trains_the_norms_of_an_8bit_base(tmp_path):
    adapted(base=vit()).save_pretrained(tmp_path)
    model = LabelShiftAdapterForImageClassification.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    adapter = engine(model, "tent", norm_types="LayerNorm", lr=1e-2)
    batch = stream()[0].to(model.dtype)
    first, second = (adapter(batch).logits for _ in range(2))
    assert second.isfinite().all() and not torch.equal(first, second)


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind.needs_gradients])
def test_methods_that_learn_do_so_under_no_grad(method):
    options = {"lr": 1e-2} | ({"update_every": 8} if method == "note" else {})
    expected = logits(engine(classifier(), method, **options))
    with torch.no_grad():
        torch.testing.assert_close(logits(engine(classifier(), method, **options)), expected)


@torch.no_grad()
def test_norm_is_the_batchs_statistics():
    model = classifier()
    expected = classifier().train()(stream()[0]).logits
    torch.testing.assert_close(engine(model, "norm")(stream()[0]).logits, expected)
    torch.testing.assert_close(engine(classifier(), "norm", no_stats=True)(stream()[0]).logits, expected)


def test_norm_may_forget_the_sources_statistics():
    model = classifier()
    engine(model, "norm", reset_stats=True, momentum=1.0)(stream()[0])
    norm = model.resnet.embedder.embedder.normalization
    x = model.resnet.embedder.embedder.convolution(stream()[0])
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))


def test_iabn_looks_at_each_instance_by_itself():
    whole = engine(classifier(), "iabn")(stream()[0]).logits
    alone = torch.cat([engine(classifier(), "iabn")(x[None]).logits for x in stream()[0]])
    torch.testing.assert_close(alone, whole)
    assert not torch.allclose(whole, engine(classifier(), "none")(stream()[0]).logits)


def test_note_does_not_depend_on_how_the_stream_is_cut():
    samples = torch.cat(stream(4))
    options = {"update_every": 10, "memory_size": 6, "lr": 1e-2, "bn_momentum": 0.2}
    outputs = [logits(engine(classifier(), "note", **options), samples.split(size)) for size in (32, 5, 1)]
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])
    assert not torch.allclose(outputs[0][10:], logits(engine(classifier(), "iabn"), [samples])[10:])


def test_notes_memory_keeps_classes_equal_and_forgets_at_random():
    memory = BalancedReservoir(10)
    for index in range(200):
        memory.add(index, 0 if index % 10 else 1)
    assert len(memory) == 10 and {label: len(held) for label, held in memory.samples.items()} == {0: 5, 1: 5}
    assert max(memory.samples[0]) > 50, "the last samples of a class have the chance of the first"


def test_notes_memory_of_one_class_is_a_uniform_sample():
    means = []
    for seed in range(200):
        memory = BalancedReservoir(4, seed)
        for index in range(40):
            memory.add(index, 7)
        means.append(sum(memory.content()) / 4)
    assert abs(sum(means) / len(means) - 19.5) < 1.2


def test_notes_memory_needs_samples_of_one_shape():
    with pytest.raises(ValueError, match="input_ids"):
        joined([{"input_ids": torch.zeros(1, 3)}, {"input_ids": torch.zeros(1, 4)}])


@pytest.mark.parametrize("affinity", ["kNN", "rbf", "linear"])
def test_lames_step_lowers_its_energy(affinity):
    torch.manual_seed(0)
    method = Lame(affinity=affinity, force_symmetry=True)
    w = method.affinities(torch.randn(12, 5))
    if affinity == "linear":
        w = w @ w.mT  # the bound holds for a positive semidefinite matrix
    p = torch.randn(12, 4).softmax(-1)
    unary = -(p + 1e-10).log()

    def energy(y):
        return (y * (unary - w @ y + y.clamp_min(1e-30).log())).sum()

    y = method.refine(p, w)
    assert energy(y) <= energy((-unary).softmax(-1)) + 1e-5
    torch.testing.assert_close(y.sum(-1), torch.ones(12))
    torch.testing.assert_close(y, (w @ y - unary).softmax(-1), atol=2e-3, rtol=0)


def test_lames_neighbours_agree():
    features = torch.cat((torch.randn(6, 3) * 0.01 + 5, torch.randn(6, 3) * 0.01 - 5))
    p = torch.full((12, 2), 0.5)
    p[:3, 0], p[6:9, 1] = 0.9, 0.9
    p[:3, 1], p[6:9, 0] = 0.1, 0.1
    method = Lame(knn=3)
    assert method.refine(p, method.affinities(features)).argmax(-1).tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("affinity", ["kNN", "rbf", "linear"])
def test_lame_takes_a_batch_of_one(affinity):
    assert engine(classifier(), "lame", affinity=affinity)(stream()[0][:1]).logits.isfinite().all()


def test_lames_logits_are_log_probabilities():
    y = engine(classifier(), "lame")(stream()[0]).logits
    torch.testing.assert_close(y.exp().sum(-1), torch.ones(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [classifier, adapted], ids=["upstream", "with adapter"])
def test_prior_correction_is_the_closed_form(make):
    model, target = make(), torch.tensor([1.0, 2.0, 4.0, 8.0])
    output = engine(model, "prior_correction", target_distribution=target)(stream()[0])
    expected = prior_correction(classifier()(stream()[0]).logits, COUNTS / 15, target / 15)
    torch.testing.assert_close(output.logits, expected.detach())
    torch.testing.assert_close(output.label_distribution, target / 15)


def test_prior_correction_estimates_a_distribution_that_it_is_not_told():
    output = engine(classifier(), "prior_correction", estimate_momentum=0.5)(stream()[0])
    plain = classifier()(stream()[0]).logits.detach()
    expected = prior_correction(plain, COUNTS / 15, torch.full((4,), 0.25))
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.label_distribution, 0.125 + 0.5 * expected.softmax(-1).mean(0))


@pytest.mark.parametrize("base", ["convnext", "swin", "deit", "crossvit", "rmt", "bert", "gpt2", "wav2vec2"])
@pytest.mark.parametrize("method", ["none", "tent", "lame"])
def test_methods_work_on_any_base(base, method):
    from hf_ext.adapters.label_shift_adapter import LabelShiftAdapterConfig

    torch.manual_seed(0)
    model = adapted_class(base)(LabelShiftAdapterConfig(base_config=BASES[base][1]())).eval()
    options = {"norm_types": ("LayerNorm", "GroupNorm", "BatchNorm2d")} if method == "tent" else {}
    output = TestTimeAdapter(model, method, **options)(**BASES[base][2]())
    assert output.logits.shape == (2, model.config.num_labels) and output.logits.isfinite().all()


@pytest.mark.parametrize("method", ["tent", "norm", "iabn", "note"])
def test_a_model_without_batch_norms_is_refused_at_once_and_told_what_it_has(method):
    model = vit()
    before = everything(model)[1:]
    with pytest.raises(
        ValueError, match=r"ViTForImageClassification has no BatchNorm2?d? to adapt, but LayerNorm; .*norm_types"
    ):
        TestTimeAdapter(model, method)
    assert everything(model)[1:] == before


WRONG = {
    "method='tnt' is not one of none": lambda: TestTimeAdapter(classifier(), "tnt"),
    "'tent' has no option learning_rate; it has optimizer": lambda: TestTimeAdapter(classifier(), learning_rate=1),
    "'none' has no option lr; it has none": lambda: TestTimeAdapter(classifier(), "none", lr=1),
    "where you make it: lr": lambda: TestTimeAdapter(classifier(), Tent(), lr=1),
    "update='later'": lambda: TestTimeAdapter(classifier(), update="later"),
    "estimator='median'": lambda: TestTimeAdapter(classifier(), estimator="median"),
    "estimate_momentum=0 must": lambda: TestTimeAdapter(adapted(), estimate_momentum=0),
    "has no label shift adapter": lambda: TestTimeAdapter(classifier(), label_shift=True),
    "give the classes' counts": lambda: TestTimeAdapter(classifier(), "prior_correction"),
    "set_source_distribution": lambda: TestTimeAdapter(adapted(), source_distribution=COUNTS),
    "one axis with 4": lambda: engine(classifier(), "prior_correction", target_distribution=torch.ones(3)),
    "optimizer='Lion'": lambda: Tent(optimizer="Lion"),
    "steps=0": lambda: Tent(steps=0),
    "memory_size=0": lambda: Note(memory_size=0),
    "affinity='cosine'": lambda: Lame(affinity="cosine"),
    "knn=0": lambda: Lame(knn=0),
    "max_steps=0": lambda: Lame(max_steps=0),
    "no `labels`": lambda: engine(classifier(), "none")(pixel_values=stream()[0], labels=torch.zeros(8)),
    "no batch": lambda: engine(classifier(), "none")(),
    "There is no batch in pixel_values": lambda: engine(classifier(), "none")(stream()[0][:0]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_requests_say_what_is_allowed(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_learning_in_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        engine(classifier(), "tent")(stream()[0])
