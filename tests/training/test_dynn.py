"""The callback that lets the weights of the exits' losses rise."""

import pytest
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_ext.models.dynn import MultiExitForImageClassification
from hf_ext.training.dynn import ExitLossCallback
from tests.tiny import TINY


def test_weights_rise_to_the_largest_of_each_exit():
    model = MultiExitForImageClassification(TINY["dynn"]()[0])
    weights = []
    for progress in (0.0, 0.5, 1.0):
        model.exit_loss_progress = progress
        weights.append(model.exit_loss_weights())
    assert weights == [pytest.approx(x) for x in ([0.01, 0.01], [0.085, 0.16], [0.15, 0.3])]


def test_weights_of_zero_train_the_network_alone():
    config, inputs = TINY["dynn"]()
    config.exit_loss_weights = [0.0, 0.0]
    model = MultiExitForImageClassification(config)
    model(**inputs).loss.backward()
    assert all(not parameter.grad.any() for parameter in model.exits.parameters())
    assert all(parameter.grad.any() for parameter in model.network.head.parameters())


def test_a_model_without_exits_is_refused(tmp_path):
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(nn.Linear(2, 2), arguments, train_dataset=[{}], callbacks=[ExitLossCallback()])
    with pytest.raises(ValueError, match="Linear has no exits"):
        trainer.train()
