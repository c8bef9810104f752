"""The paper's three studies on a small ResNet of handwritten digits: what carries over between the network with exits and the one without,
what an attack costs on either, and how the design of the exits decides about the attack on the mechanism.

The paper's networks (VGG-16, ResNet-56, MobileNet on CIFAR) need a GPU for hours, and its figures could not be consulted: only the
directions that its abstract names stand beside ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from transformers.utils.logging import tqdm

from hf_ext.data.digits import handwritten_digits
from hf_ext.files import replaced_files
from hf_ext.models.dynn import MultiExitConfig, MultiExitForImageClassification, MultiExitImageProcessor
from hf_ext.robustness import (
    attack_cost,
    choose_threshold,
    early,
    early_success,
    efficacy_of,
    exit_costs,
    pgd,
    pgd_avg,
    pgd_max,
    predictions,
    slowdown,
    transfer_study,
)
from hf_ext.training.dynn import ExitLossCallback

from . import Experiment, MissingData, Row, Run
from .crossvit import AugmentedDigits

DATA = "scikit-learn digits"
BLOCKS = 6
EVERY_EXIT = [1, 1, 1, 1, 1, 0]  # after each block but the last
THREE_EXITS = [0, 1, 0, 1, 1, 0]
BUDGET = {"epsilon": 0.1, "step_size": 0.02, "steps": 20}
VALIDATION, TEST = 200, 500
# The paper accepts 5 %. Digits are so easy that three exits then let everybody go at the first: nothing would be dynamic any more
STUDY_DROP = 0.01
USUAL_THRESHOLD = 0.9


class Digits:
    """(images, labels) to train on, to choose a threshold on, and to test on; images (N, 3, 32, 32) in [0, 1]"""

    def __init__(self):
        processor = MultiExitImageProcessor()
        (images, labels), (test_images, test_labels) = handwritten_digits(held_out_share=0.3)
        pixels = processor(images, return_tensors="pt").pixel_values
        self.train = pixels[:-VALIDATION], labels[:-VALIDATION]
        self.validation = pixels[-VALIDATION:], torch.tensor(labels[-VALIDATION:])
        test = processor(test_images[:TEST], return_tensors="pt").pixel_values
        self.test = test.contiguous(memory_format=torch.channels_last), torch.tensor(test_labels[:TEST])

    def batches(self, size: int = 100) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(zip(*(part.split(size) for part in self.test)))


def network(exits: list[int], **fields) -> MultiExitForImageClassification:
    torch.manual_seed(0)
    names = [str(digit) for digit in range(10)]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: digit for digit, name in enumerate(names)}}
    return MultiExitForImageClassification(
        MultiExitConfig(depths=[2, 2, 2], hidden_sizes=[8, 16, 32], stem_size=8, exits=exits, **labels, **fields)
    )


def fit(run: Run, model: MultiExitForImageClassification, data: Digits, epochs: int) -> None:
    from .training import train

    train(
        run,
        model,
        AugmentedDigits(*data.train, epochs),
        callbacks=[ExitLossCallback()],
        num_train_epochs=1,
        save_steps=100,
        per_device_train_batch_size=64,
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        weight_decay=1e-4,
    )


def with_exits(model: MultiExitForImageClassification, exits: list[int], **fields) -> MultiExitForImageClassification:
    """The network with those of its exits alone."""
    config = model.config.to_dict() | {"exits": exits, "exit_loss_weights": None} | fields
    other = MultiExitForImageClassification(MultiExitConfig.from_dict(config))
    other.load_state_dict(model.state_dict(), strict=False)
    return other.eval().to(memory_format=torch.channels_last)  # a third faster under attack


def train_demo(run: Run) -> list[Row]:
    """The static network first, then exits after every block of the frozen network, and the threshold by the paper's rule."""
    data, epochs = Digits(), int(run.options["epochs"])
    static = network(EVERY_EXIT, exit_loss_weights=[0.0] * 5)
    fit(replace(run, folder=run.folder / "static"), static, data, epochs)
    model = network(EVERY_EXIT, train_mode="ic_only")
    model.network.load_state_dict(static.network.state_dict())
    fit(replace(run, folder=run.folder / "exits"), model, data, max(epochs // 2, 1))
    model.config.threshold = choose_threshold(model, *data.validation).value
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
        MultiExitImageProcessor().save_pretrained(folder)
    return describe(model.eval(), data)


@torch.no_grad()
def describe(model: MultiExitForImageClassification, data: Digits) -> list[Row]:
    images, labels = data.test
    served = model(images, exit_mode="dynamic")
    costs = exit_costs(model, images[:1])
    accuracy = {
        "with exits": served.logits.argmax(-1) == labels,
        "without exits": predictions(model, images) == labels,
    }
    return [
        *(
            Row(f"accuracy {name}", right.float().mean().item(), dataset=DATA, metric_type="accuracy")
            for name, right in accuracy.items()
        ),
        Row("threshold", model.config.threshold, note="chosen on 200 other digits, relative accuracy drop of 5 %"),
        Row("mean cost of a sample", costs[served.exit_index].mean().item(), note="FLOPs over the whole network's"),
        Row("efficacy", efficacy_of(served.exit_index, costs)),
        Row("parameters", model.num_parameters()),
    ]


def trained(run: Run) -> MultiExitForImageClassification:
    """The checkpoint that the card ships."""
    if not (run.card / "model.safetensors").is_file():
        raise MissingData(
            "The studies start from the demo's weights: run `hf-ext reproduce dynn --experiment demo` first"
        )
    return MultiExitForImageClassification.from_pretrained(run.card).eval()


def transfer(run: Run) -> list[Row]:
    """RQ1. Both ways of training: exits on a frozen network (so both networks share all weights), and everything jointly."""
    data = Digits()
    joint = network(THREE_EXITS)
    fit(run, joint, data, int(run.options["epochs"]))
    models = {
        "frozen network": with_exits(trained(run), THREE_EXITS),
        "joint training": with_exits(joint, THREE_EXITS),
    }
    rows = []
    for name, model in models.items():
        model.config.threshold = choose_threshold(model, *data.validation, accuracy_drop=STUDY_DROP).value
        table = transfer_study(model, model, data.batches(), attacks_with(BUDGET))
        clean = table.pop("clean")
        rows.append(
            Row(f"threshold, {name}", model.config.threshold, note=f"relative accuracy drop of {STUDY_DROP:.0%}")
        )
        rows += [Row(f"accuracy, {kind}, {name}", value) for kind, value in clean.items()]
        for attack, measured in table.items():
            direction = "static to dynamic" if "static" in attack else "dynamic to static"
            rows.append(Row(f"attack success, {attack}, {name}", measured["attack_success"]))
            rows.append(
                Row(
                    f"transfer {direction}, {attack}, {name}",
                    measured["transfer"],
                    "" if "static" in attack else "higher than static to dynamic",
                    note=f"of those that fool the source {measured['transfer_of_fooled']:.3f}",
                )
            )
    return rows


def attacks_with(budget: dict[str, float]) -> dict:
    from hf_ext.robustness import ATTACKS, Attack

    return {name: Attack(attack.source, partial(attack.craft, **budget)) for name, attack in ATTACKS.items()}


def cost(run: Run) -> list[Row]:
    """RQ2: what it takes to fool the network without exits, and the one with them."""
    data, model = Digits(), with_exits(trained(run), THREE_EXITS)
    model.config.threshold = choose_threshold(model, *data.validation, accuracy_drop=STUDY_DROP).value
    images, labels = (part[:60] for part in data.test)
    contests = {
        "static, pgd": (pgd, "final"),
        "dynamic, pgd on the exit taken": (partial(pgd, exit_mode="dynamic"), "dynamic"),
        "dynamic, pgd_avg": (pgd_avg, "dynamic"),
        "dynamic, pgd_max": (pgd_max, "dynamic"),
    }
    rows = []
    for name, (craft, mode) in tqdm(contests.items(), desc="attacks"):
        measured = attack_cost(partial(craft, **BUDGET), model, images, labels, mode)
        less = "less than static" if mode == "dynamic" else ""
        rows += [
            Row(f"steps until fooled, {name}", measured["steps"], note=f"{measured['fooled']:.1%} fooled"),
            Row(f"GFLOPs an image until fooled, {name}", measured["gflops_until_fooled"], less),
            Row(f"milliseconds an image for all {BUDGET['steps']} steps, {name}", 1000 * measured["seconds"]),
        ]
    return rows


def design(run: Run) -> list[Row]:
    """RQ3: the attack on the mechanism, and DeepSloth, by where the first exit is, how many there are, and the threshold."""
    data, model = Digits(), trained(run)
    rows: list[Row] = []
    for name, exits, threshold in tqdm(list(designs()), desc="designs"):
        variant = with_exits(model, exits)
        variant.config.threshold = threshold
        rows += measure_design(name, variant, data)
    return rows


def designs() -> Iterator[tuple[str, list[int], float]]:
    """Name, exits, threshold."""
    for first in range(BLOCKS - 1):
        exits = [0] * first + [1] * (BLOCKS - 1 - first) + [0]
        yield f"first exit after block {first + 1}", exits, USUAL_THRESHOLD
    for exits in ([0, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0], THREE_EXITS):
        yield f"number of exits {sum(exits)}", exits, USUAL_THRESHOLD
    for threshold in (0.5, 0.7, 0.95):
        yield f"all exits, threshold {threshold}", EVERY_EXIT, threshold


def measure_design(name: str, model: MultiExitForImageClassification, data: Digits) -> list[Row]:
    images, labels = (part[:100] for part in data.test)
    answer = predictions(model, images)  # of the static network, right or wrong
    attacked = early(model, images, answer, exit_index=0, **BUDGET)
    measured = early_success(model, images, attacked, answer, exit_index=0)
    slowed = slowdown(model, images, **BUDGET, generator=torch.Generator().manual_seed(0))
    costs = exit_costs(model, images[:1])
    with torch.no_grad():
        before, after = (efficacy_of(model(x, exit_mode="dynamic").exit_index, costs) for x in (images, slowed))
        static = predictions(model, pgd(model, images, labels, **BUDGET), "dynamic") != labels
    return [
        Row(
            f"early attack succeeds, {name}",
            measured["success"],
            note=f"threshold {model.config.threshold}; static answer kept for {measured['unchanged']:.1%}",
        ),
        Row(f"fooled by pgd on the static network, {name}", static.float().mean().item()),
        Row(f"efficacy lost to slowdown, {name}", 1 - after / before, "0.9 to 1", f"{before:.2f} to {after:.2f}"),
    ]


EXPERIMENTS = {
    "transfer": Experiment(
        "What fools the network with exits, and what the one without",
        transfer,
        minutes=4,
        options={"epochs": (12, "times that each digit comes in the joint training, differently turned and moved")},
    ),
    "cost": Experiment("Steps, FLOPs and time of attacks on both", cost, minutes=1),
    "design": Experiment("The attack on exits by their place, number and threshold", design, minutes=2),
    "demo": Experiment(
        "The digit classifier with five exits that the card ships",
        train_demo,
        minutes=3,
        options={"epochs": (12, "times that each digit comes to the network; half as often to its exits")},
    ),
}
