"""The schedule of PRepBN follows the optimizer's steps, whatever else the training does."""

import os
import tempfile

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_ext.reproductions.training import TensorDataset
from hf_ext.training.slab import ProgressiveNormCallback, convert_norms, fuse_repbn, progressive_norms
from tests.surgery.test_repbn import MODELS

STEPS, BATCH = 6, 4


def classifier() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return convert_norms(ViTForImageClassification(config))


def dataset() -> TensorDataset:
    images = torch.rand(STEPS * BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(pixel_values=images, labels=torch.arange(len(images)) % 3)


class Watch(TrainerCallback):
    """Notes the ratio that each step used, and can stop the training as an interruption would."""

    def __init__(self, stop_after: int | None = None):
        self.ratios: list[float | None] = []
        self.stop_after = stop_after

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        ratios = {norm.ratio for norm in progressive_norms(model)}
        assert len(ratios) == 1, "the norms of one model are at different places of the schedule"
        self.ratios += ratios

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.stop_after


def train(folder, accumulation: int = 1, checkpointing: bool = False, stop_after=None, resume=None):
    watch = Watch(stop_after)
    trainer = Trainer(
        model=classifier(),
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=BATCH // accumulation,
            gradient_accumulation_steps=accumulation,
            gradient_checkpointing=checkpointing,
            save_steps=3,
            report_to="none",
            seed=0,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=dataset(),
        callbacks=[ProgressiveNormCallback(warm=1, steps=4), watch],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model, watch.ratios


SCHEDULE = [None, 1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_ratio_of_each_step_does_not_depend_on_accumulation(tmp_path, accumulation):
    model, ratios = train(tmp_path, accumulation)
    assert ratios == SCHEDULE
    assert all((int(norm.warm), int(norm.iter)) == (0, 0) for norm in progressive_norms(model))


def test_gradient_checkpointing_trains_to_the_same_weights_and_statistics(tmp_path):
    plain, _ = train(tmp_path / "plain")
    again, ratios = train(tmp_path / "again", checkpointing=True)
    assert ratios == SCHEDULE
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, msg=lambda m, n=name: f"{n}: {m}")


def test_resumed_training_goes_on_where_it_stopped(tmp_path):
    whole, _ = train(tmp_path / "whole")
    stopped, first = train(tmp_path / "parts", stop_after=3)
    assert all(int(norm.iter) == 2 for norm in progressive_norms(stopped))
    resumed, second = train(tmp_path / "parts", resume=True)
    assert first + second == SCHEDULE
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=lambda m, n=name: f"{n}: {m}")


def test_model_that_trainer_trained_folds(tmp_path):
    model, _ = train(tmp_path)
    images = dataset()[slice(None)]["pixel_values"]
    model.eval()
    with torch.no_grad():
        expected = model(images).logits
        torch.testing.assert_close(fuse_repbn(model)(images).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["deit", "swin", "llama", "bert"])
def test_schedule_runs_on_upstream_families_to_models_that_fold(name):
    model_class, config, inputs = MODELS[name]
    torch.manual_seed(0)
    model, labels = convert_norms(model_class(config)).train(), inputs.get("input_ids", torch.tensor([0, 1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    callback, ratios = ProgressiveNormCallback(warm=1, steps=2), []
    for step in range(6):
        callback.on_step_begin(None, TrainerState(global_step=step, max_steps=6), TrainerControl(), model=model)
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        ratios += {norm.ratio for norm in progressive_norms(model)}
    assert ratios == [None, 1.0, 0.5, 0.0, 0.0, 0.0]
    model.eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        assert expected.isfinite().all() and expected.std() > 1e-3
        torch.testing.assert_close(fuse_repbn(model)(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = classifier().train()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback, state, control = ProgressiveNormCallback(warm=1, steps=2), TrainerState(max_steps=4), TrainerControl()
    callback.on_train_begin(None, state, control, model=model)
    for step in range(4):
        state.global_step = step
        callback.on_step_begin(None, state, control, model=model)
        rows = dataset()[slice(4 * step + 2 * rank, 4 * step + 2 * rank + 2)]
        optimizer.zero_grad()
        parallel(**rows).loss.backward()
        optimizer.step()
    torch.save((model.state_dict(), [norm.ratio for norm in progressive_norms(model)]), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # destructors of a forked process may wait for threads that the fork did not copy


def test_two_processes_keep_the_same_schedule_and_weights():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(_process, (folder,), nprocs=2, start_method="fork")
        (first, ratios), (second, others) = (torch.load(f"{folder}/{rank}.pt") for rank in range(2))
    assert set(ratios) == set(others) == {0.0}
    for name, tensor in first.items():
        if "running" not in name:  # the statistics are each process's own until the next forward pass
            assert torch.equal(second[name], tensor), name


def begin(callback: ProgressiveNormCallback, model: nn.Module, max_steps: int = 100) -> None:
    callback.on_train_begin(None, TrainerState(max_steps=max_steps), TrainerControl(), model=model)


def test_shares_are_of_all_steps():
    assert ProgressiveNormCallback(warm=0.1, steps=0.5).schedule(200) == (20, 100)


def test_training_too_short_for_the_schedule_warns(caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    begin(ProgressiveNormCallback(steps=50), classifier(), max_steps=20)
    logging.disable_propagation()
    assert "reached only at step 50" in caplog.text


def test_model_without_progressive_norms_is_refused():
    with pytest.raises(ValueError, match="Linear has no progressive norm"):
        begin(ProgressiveNormCallback(), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"steps": 1.5}, "share from 0.0 to 1.0"), ({"steps": 0}, "at least 1 steps"), ({"warm": -1}, "at least 0 steps")],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveNormCallback(**arguments)
