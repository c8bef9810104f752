"""Attacks: they stay within their bounds, raise what they are to raise, and leave the model as it was."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from hf_ext.models.dynn import MultiExitConfig, MultiExitForImageClassification
from hf_ext.robustness import (
    PixelSpace,
    answers,
    early,
    early_target,
    every_answer,
    pgd,
    pgd_avg,
    pgd_max,
    slowdown,
    universal_slowdown,
)
from hf_ext.robustness.attacks import exit_taken, uniform_cross_entropy
from tests.models.vision import used
from tests.tiny import images, seeded

BUDGET = {"epsilon": 0.05, "step_size": 0.02, "steps": 4}
LABELS = torch.tensor([0, 1, 2, 3])
ATTACKS = {
    "pgd": pgd,
    "pgd on the exit taken": partial(pgd, exit_mode="dynamic"),
    "pgd_avg": pgd_avg,
    "pgd_max": pgd_max,
    "slowdown": slowdown,
    "early": early,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = MultiExitConfig(
        image_size=16, hidden_sizes=[8, 16], depths=[2, 2], stem_size=8, exits=[1, 0, 1, 0], num_labels=4, threshold=0.5
    )
    return used(MultiExitForImageClassification(config)).eval()


@pytest.fixture
def static():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=4)).eval()


@pytest.fixture
def pixels():
    return images(16, batch=4)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_stays_within_its_bound_and_among_images(model, pixels, name):
    adversarial = ATTACKS[name](model, pixels, LABELS, **BUDGET)
    assert (adversarial - pixels).abs().max() <= BUDGET["epsilon"] + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert not torch.equal(adversarial, pixels)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "slowdown"])
def test_other_norms_bound_each_image(model, pixels, name, norm):
    budget = {"epsilon": 1.5, "step_size": 0.7, "steps": 4, "norm": norm}
    delta = (ATTACKS[name](model, pixels, LABELS, **budget) - pixels).flatten(1)
    assert delta.norm(int(norm[1]), dim=1).max() <= 1.5 + 1e-4


@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 1.0), ("l1", 8.0)])
def test_slowdown_in_other_norms_is_bounded_and_slows_down(model, pixels, norm, epsilon):
    slowed = slowdown(model, pixels, norm=norm, steps=10, generator=seeded())
    assert (slowed - pixels).flatten(1).norm(int(norm[1]), dim=1).max() <= epsilon + 1e-4
    assert hesitation(model, slowed) < hesitation(model, pixels)


@torch.no_grad()
def hesitation(model, x) -> float:
    return sum(uniform_cross_entropy(logits).item() for logits in every_answer(model, x)[:-1])


def final_loss(model, x) -> torch.Tensor:
    return F.cross_entropy(answers(model, x), LABELS)


@torch.no_grad()
def mean_loss(model, x) -> torch.Tensor:
    return sum(F.cross_entropy(logits, LABELS) for logits in every_answer(model, x))


def test_pgd_raises_the_loss_of_the_final_classifier(model, pixels):
    assert final_loss(model, pgd(model, pixels, LABELS, **BUDGET)) > final_loss(model, pixels)


def test_pgd_avg_raises_the_loss_of_all_classifiers(model, pixels):
    assert mean_loss(model, pgd_avg(model, pixels, LABELS, **BUDGET)) > mean_loss(model, pixels)


def test_pgd_max_is_the_worst_of_the_attacks_on_single_classifiers(model, pixels):
    def summed(x):
        return sum(F.cross_entropy(logits, LABELS, reduction="none") for logits in every_answer(model, x))

    with torch.no_grad():
        worst = summed(pgd_max(model, pixels, LABELS, **BUDGET))
        assert (worst >= summed(pgd(model, pixels, LABELS, **BUDGET)) - 1e-5).all()


def test_slowdown_makes_every_exit_less_sure(model, pixels):
    slowed = slowdown(model, pixels, **BUDGET, generator=seeded())
    assert hesitation(model, slowed) < hesitation(model, pixels)


def test_one_perturbation_slows_all_images_down(model, pixels):
    for norm, epsilon in (("linf", 0.1), ("l2", 1.0), ("l1", 8.0)):
        delta = universal_slowdown(model, [pixels], norm=norm, epsilon=epsilon, steps=10, generator=seeded())
        assert delta.shape == (1, 3, 16, 16)
        assert hesitation(model, (pixels + delta).clamp(0, 1)) < hesitation(model, pixels)


def test_early_turns_the_exit_and_holds_the_final_answer(model, pixels):
    with torch.no_grad():
        final = answers(model, pixels).argmax(-1)
    target = early_target(model, pixels, final, 0)
    attacked = early(model, pixels, exit_index=0, **BUDGET)
    with torch.no_grad():
        before, after = (every_answer(model, x) for x in (pixels, attacked))
    assert F.cross_entropy(after[0], target) < F.cross_entropy(before[0], target)
    assert F.cross_entropy(after[-1], final) < F.cross_entropy(before[-1], final) + 0.1


def test_the_early_target_is_never_the_right_class(model, pixels):
    assert (early_target(model, pixels, LABELS, 1) != LABELS).all()


def test_early_takes_the_exit_of_each_image_when_none_is_named(model, pixels):
    taken = exit_taken(model, pixels)
    ours = early(model, pixels, LABELS, **BUDGET)
    assert torch.equal(ours, early(model, pixels, LABELS, exit_index=taken, **BUDGET))


@pytest.mark.parametrize("name", ["pgd", "pgd_avg", "pgd_max"])
def test_a_classifier_without_exits_is_attacked_alike(static, pixels, name):
    assert torch.equal(ATTACKS[name](static, pixels, LABELS, **BUDGET), pgd(static, pixels, LABELS, **BUDGET))


@pytest.mark.parametrize("name", ["slowdown", "early"])
def test_attacks_on_exits_need_exits(static, pixels, name):
    with pytest.raises(ValueError, match="ViTForImageClassification has no exits"):
        ATTACKS[name](static, pixels, LABELS)


def test_the_model_is_left_as_it_was(model, pixels):
    model.train()
    model.network.requires_grad_(False)
    asking = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    pgd(model, pixels, LABELS, **BUDGET)
    assert model.training and model.exits["0"].training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == asking
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_random_start_is_repeatable(model, pixels):
    first, second = (pgd(model, pixels, LABELS, random_start=True, generator=seeded(3), **BUDGET) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, pgd(model, pixels, LABELS, **BUDGET))


def test_every_step_is_shown(model, pixels):
    seen = []
    last = pgd_max(model, pixels, LABELS, on_step=lambda step, x: seen.append((step, x)), **BUDGET)
    assert [step for step, _ in seen] == list(range(1, 3 * BUDGET["steps"] + 1))
    assert last.shape == seen[-1][1].shape


def test_normalization_inside_keeps_bounds_in_pixels(static, pixels):
    inside = PixelSpace(static, [0.5, 0.4, 0.3], [0.2, 0.3, 0.1])
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.1]))
    torch.testing.assert_close(answers(inside, pixels), static((pixels - mean) / std).logits)
    adversarial = pgd(inside, pixels, LABELS, **BUDGET)
    assert (adversarial - pixels).abs().max() <= BUDGET["epsilon"] + 1e-6


@settings(max_examples=10, derandomize=True, deadline=None)
@given(
    batch=st.integers(1, 3),
    epsilon=st.floats(0.001, 0.5),
    steps=st.integers(0, 3),
    norm=st.sampled_from(["linf", "l2", "l1"]),
)
def test_any_bound_holds_for_any_batch(batch, epsilon, steps, norm):
    torch.manual_seed(0)
    config = MultiExitConfig(image_size=8, hidden_sizes=[4, 8], depths=[1, 1], stem_size=4, exits=[1, 0], num_labels=3)
    net, x = MultiExitForImageClassification(config), images(8, batch=batch)
    labels = torch.zeros(batch, dtype=torch.long)
    delta = pgd_avg(net, x, labels, epsilon=epsilon, step_size=epsilon, steps=steps, norm=norm) - x
    length = delta.flatten(1).norm({"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
    assert length.max() <= epsilon * (1 + 1e-4) + 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.full((4, 3, 16, 16), 2.0)}, r"must lie in \[0, 1\]"),
        ({"images": torch.full((4, 3, 16, 16), float("nan"))}, r"must lie in \[0, 1\]"),
        ({"images": torch.rand(3, 16, 16)}, "must be .batch, channels, height, width."),
        ({"images": torch.zeros(0, 3, 16, 16)}, "must be .batch, channels, height, width."),
        ({"labels": torch.tensor([0, 1])}, "must be 4 classes"),
        ({"labels": torch.rand(4)}, "must be 4 classes"),
        ({"norm": "l3"}, "`norm` must be one of linf, l2, l1"),
        ({"epsilon": 0.0}, "must be positive"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(model, pixels, change, message):
    with pytest.raises(ValueError, match=message):
        pgd(model, **{"images": pixels, "labels": LABELS} | change)


def test_an_exit_that_is_not_there_is_refused(model, pixels):
    with pytest.raises(ValueError, match=r"`exit_index` must lie in \[0, 2\)"):
        early(model, pixels, LABELS, exit_index=2)
