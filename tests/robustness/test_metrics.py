"""What attacks did and what exits save: counted by hand on networks whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_ext.models.dynn import MultiExitConfig, MultiExitForImageClassification, MultiExitForSequenceClassification
from hf_ext.robustness import (
    attack_cost,
    attack_success,
    choose_threshold,
    cumulative_exits,
    early_success,
    efficacy,
    efficacy_of,
    exit_costs,
    pgd,
    robustness_report,
    steps_until_fooled,
    transfer_rate,
    transfer_study,
)
from tests.models.vision import used
from tests.tiny import OTHERS, images


class Scripted(nn.Module):
    """Image k of constant value k / 10 is answered with `answers[k]`."""

    def __init__(self, answers: list[int]):
        super().__init__()
        self.answers = torch.tensor(answers)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        place = (pixel_values[:, 0, 0, 0] * 10).round().long()
        return SimpleNamespace(logits=nn.functional.one_hot(self.answers[place], 4).float())


def constant(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 10


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = MultiExitConfig(
        image_size=16, hidden_sizes=[8, 16], depths=[2, 2], stem_size=8, exits=[1, 0, 1, 0], num_labels=4, threshold=0.4
    )
    return used(MultiExitForImageClassification(config)).eval()


# images 0 to 3 are clean, 4 to 7 their attacked forms; every right answer is 1
CLEAN, ATTACKED, RIGHT = constant(0, 1, 2, 3), constant(4, 5, 6, 7), torch.ones(4, dtype=torch.long)
SOURCE = Scripted([1, 1, 1, 0, 0, 0, 1, 0])  # three right, of which two are fooled
TARGET = Scripted([1, 1, 0, 1, 2, 1, 1, 2])


def test_success_counts_those_that_were_answered_rightly():
    assert attack_success(SOURCE, CLEAN, ATTACKED, RIGHT) == pytest.approx(2 / 3)


def test_transfer_counts_those_that_both_answered_rightly():
    assert transfer_rate(SOURCE, TARGET, CLEAN, ATTACKED, RIGHT) == pytest.approx(1 / 2)


def test_without_a_right_answer_there_is_no_rate():
    assert attack_success(SOURCE, CLEAN, ATTACKED, RIGHT * 3) != attack_success(SOURCE, CLEAN, ATTACKED, RIGHT)


def test_everything_that_leaves_at_once_has_efficacy_near_one():
    costs = torch.tensor([1e-6, 0.5, 1.0])
    assert efficacy(torch.tensor([10, 0, 0]), costs, 10) == pytest.approx(1, abs=1e-5)


def test_efficacy_falls_the_later_samples_leave():
    costs = torch.tensor([0.2, 0.5, 1.0])
    values = [efficacy_of(torch.full((5,), exit), costs) for exit in range(3)]
    assert values == sorted(values, reverse=True) and values[0] > values[2]


def test_the_share_that_has_left_ends_at_one():
    assert cumulative_exits(torch.tensor([3, 0, 0]), 10).tolist() == [0, 0.3, 0.3, 1]


def test_efficacy_needs_a_cost_for_each_classifier():
    with pytest.raises(ValueError, match="a number for each classifier"):
        efficacy(torch.tensor([1, 2]), torch.tensor([1.0]), 3)


def test_costs_grow_to_the_whole_network_and_count_the_exits(model):
    costs = exit_costs(model, images(16, batch=1))
    assert costs.tolist() == sorted(costs.tolist()) and costs[-1] == 1
    network = 2 * (16 * 16 * 9 * (3 * 8 + 4 * 8 * 8) + 8 * 8 * (9 * 8 * 16 + 8 * 16 + 3 * 9 * 16 * 16) + 16 * 4)
    exits = 2 * (128 * 4 + 256 * 4)
    first = 2 * (16 * 16 * 9 * (3 * 8 + 2 * 8 * 8) + 128 * 4)
    assert costs[0] == pytest.approx(first / (network + exits))


def test_costs_of_texts_count_attention():
    config, inputs = OTHERS["MultiExitTextConfig"]()
    costs = exit_costs(MultiExitForSequenceClassification(config), inputs["input_ids"][:1])
    assert costs[0] == pytest.approx(1 / 3, abs=0.02) and costs[1] == pytest.approx(2 / 3, abs=0.02)


def test_the_threshold_is_the_cheapest_that_keeps_the_accuracy(model):
    pixels = images(16, batch=40)
    with torch.no_grad():
        labels = model(pixels, exit_mode="final").logits.argmax(-1)
    labels[::7] = (labels[::7] + 1) % 4
    tried = torch.linspace(0.25, 1, 16)
    chosen = choose_threshold(model, pixels, labels, accuracy_drop=0.2, thresholds=tried)
    costs = exit_costs(model, pixels[:1])
    kept = []
    for value in tried.tolist():
        with torch.no_grad():
            output = model(pixels, threshold=value)
        accuracy = (output.logits.argmax(-1) == labels).float().mean().item()
        if accuracy > 0.8 * chosen.final_accuracy:
            kept.append((costs[output.exit_index].mean().item(), value))
    assert (chosen.mean_cost, chosen.value) == pytest.approx(min(kept))


def disagreeing(model):
    """The first exit finds likeliest what it found least likely."""
    with torch.no_grad():
        model.exits["0"].linear.weight.neg_()
        model.exits["0"].linear.bias.neg_()


def test_a_drop_that_no_threshold_keeps_is_refused(model):
    disagreeing(model)
    pixels = images(16, batch=8)
    with torch.no_grad():
        labels = model(pixels, exit_mode="final").logits.argmax(-1)
        wrong = model(pixels, threshold=0.0).logits.argmax(-1) != labels
    assert wrong.any(), "the case shows nothing: the first exit is always right"
    with pytest.raises(ValueError, match=r"No threshold from 0.00 to 0.00 keeps 100%"):
        choose_threshold(model, pixels, labels, accuracy_drop=0.0, thresholds=torch.zeros(1))


def test_early_success_needs_an_early_wrong_answer_and_an_unchanged_static_one(model):
    disagreeing(model)
    pixels = images(16, batch=4)
    with torch.no_grad():
        final = model(pixels, exit_mode="final").logits.argmax(-1)
        early = model(pixels, exit_mode="all").exit_logits[0].argmax(-1)
    model.config.threshold = 0.0
    measured = early_success(model, pixels, pixels, final, exit_index=0)
    assert measured["success"] > 0 and measured["success"] == (early != final).float().mean()
    assert measured["unchanged"] == 1 and measured["mean_exit_after"] == 0


def test_the_first_step_that_fools_is_remembered():
    def craft(model, images, labels, on_step):
        for step, place in enumerate((3, 4, 5), start=1):  # right, wrong, wrong
            on_step(step, constant(place))
        return constant(5)

    steps, _ = steps_until_fooled(craft, Scripted([1, 1, 1, 1, 0, 0]), constant(0), torch.tensor([1]))
    assert steps.tolist() == [2]


def test_the_study_asks_both_networks_about_every_attack(model):
    pixels = images(16, batch=6)
    with torch.no_grad():
        labels = model(pixels, exit_mode="final").logits.argmax(-1)
    table = transfer_study(model, model, [(pixels[:4], labels[:4]), {"pixel_values": pixels[4:], "labels": labels[4:]}])
    assert set(table) == {"clean", "pgd on the static network", "pgd on the exit taken", "pgd_avg", "pgd_max"}
    assert table["clean"]["static"] == 1
    assert all(0 <= row["transfer"] <= 1 for name, row in table.items() if name != "clean")


def test_the_cost_of_an_attack_grows_with_its_steps(model):
    pixels, labels = images(16, batch=2), torch.tensor([0, 1])
    few, many = (
        attack_cost(lambda *a, steps=steps, **k: pgd(*a, steps=steps, **k), model, pixels, labels) for steps in (1, 3)
    )
    assert many["gflops"] == pytest.approx(3 * few["gflops"])


def test_the_report_has_a_line_for_each_attack_and_bound(model):
    lines = robustness_report(model, images(16, batch=4), torch.tensor([0, 1, 2, 3]), epsilons=[0.02, 0.1], steps=2)
    assert len(lines) == 1 + 6 * 2
    assert lines[0].attack == "none" and all(0 < line.mean_cost <= 1 for line in lines)


def test_an_unknown_attack_is_refused_with_the_known_ones(model):
    with pytest.raises(ValueError, match="There is no attack 'fgsm'; there are pgd"):
        robustness_report(model, images(16, batch=1), torch.tensor([0]), attacks=["fgsm"])
