"""The GAN loop, BatchNorm freezing, and the synthetic display that both are tried on."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_ext.data.display import LIGHT_RATE, DisplayPairs, through_display
from hf_ext.models.dwformer import MPGNetConfig, MPGNetDiscriminator, MPGNetModel
from hf_ext.reproductions.training import TensorDataset
from hf_ext.training.mpgnet import BatchNormFreezing, MPGNetTrainer
from tests.models.test_dwformer import SMALL


def clean_images(count):
    return TensorDataset(labels=torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def arguments(folder, **changes):
    defaults = {"per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True, "adam_beta1": 0.5, "seed": 0}
    return TrainingArguments(output_dir=str(folder), **(defaults | {"save_strategy": "no"} | changes))


def trainer(folder, steps=3, **changes):
    torch.manual_seed(0)
    config = MPGNetConfig(**SMALL)
    return MPGNetTrainer(
        MPGNetModel(config),
        arguments(folder, max_steps=steps, **changes),
        MPGNetDiscriminator(config),
        train_dataset=DisplayPairs(clean_images(8), simulate=True),
    )


def test_the_discriminator_takes_three_steps_for_one_of_the_generator(tmp_path):
    gan = trainer(tmp_path)
    gan.train()
    (steps,) = {int(state["step"]) for state in gan.discriminator_optimizer.state_dict()["state"].values()}
    assert steps == 9


def test_both_networks_move(tmp_path):
    gan = trainer(tmp_path)
    networks = {"generator": gan.model, "discriminator": gan.discriminator}
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}
    gan.train()
    for name, network in networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], network.parameters())), name


def test_the_generators_step_leaves_the_discriminator_alone(tmp_path):
    gan = trainer(tmp_path)
    batch = {name: tensor[None] for name, tensor in gan.train_dataset[0].items()}
    gan.compute_loss(gan.model, batch).backward()
    assert all(p.grad is None for p in gan.discriminator.parameters())


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path):
    saving = {"steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, resumed = trainer(tmp_path, **saving), trainer(tmp_path, **saving)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for network in ("model", "discriminator"):
        expected = getattr(whole, network).state_dict()
        for name, tensor in getattr(resumed, network).state_dict().items():
            torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0, msg=f"{network}: {name}")


def test_no_discriminator_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`discriminator_steps` must be at least 1"):
        MPGNetTrainer(None, None, None, discriminator_steps=0)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seen = []

    def forward(self, pixel_values, labels=None):
        output = self.norm(pixel_values)
        self.seen.append(self.norm.training)
        return {"loss": (output - labels).abs().mean()}


@pytest.mark.parametrize(("frozen", "trained"), [("last", [True, False, False]), ("first", [False, True, True])])
def test_batchnorm_is_frozen_for_a_part_of_the_training(tmp_path, frozen, trained):
    model = Normed()
    Trainer(
        model,
        arguments(tmp_path, num_train_epochs=3, per_device_train_batch_size=4),
        train_dataset=DisplayPairs(clean_images(4)),
        callbacks=[BatchNormFreezing(epochs=2, frozen=frozen)],
    ).train()
    assert model.seen == trained
    assert not model.norm._forward_pre_hooks


def test_freezing_knows_two_parts():
    with pytest.raises(ValueError, match="'first' or 'last'"):
        BatchNormFreezing(frozen="middle")


def test_the_display_darkens_each_color_by_its_rate():
    seen = through_display(torch.ones(3, 40, 40), torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen.mean((1, 2)), torch.tensor(LIGHT_RATE), atol=2e-3, rtol=0)
    assert seen.std((1, 2)).tolist() == pytest.approx([0.02] * 3, rel=0.1)


def test_a_pair_is_the_same_each_time_and_in_both_directions():
    restore, simulate = DisplayPairs(clean_images(2)), DisplayPairs(clean_images(2), simulate=True)
    assert torch.equal(restore[1]["pixel_values"], simulate[1]["labels"])
    assert torch.equal(restore[1]["labels"], simulate[1]["pixel_values"])
