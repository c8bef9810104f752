"""Training of MPGNet as a conditional GAN, and BatchNorm freezing for DWFormer (arXiv 2209.11455, sections 3.2 and 4.1).

`BatchNormFreezing` works on any model with BatchNorm, `MPGNetTrainer` on any generator that takes `pixel_values` and returns
`degraded_pixel_values`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_ext.models.dwformer.modeling_mpgnet import PAIR_WEIGHT, adversarial_loss, discriminator_loss, generator_loss


class MPGNetTrainer(Trainer):
    """`Trainer` for a generator, with a discriminator that is trained beside it.

    Items of the data sets hold `pixel_values`, clean images, and `labels`, real degraded ones of the same scenes, both (3, H, W).
    For each batch the discriminator takes `discriminator_steps` steps, each against freshly simulated images, then the generator
    one. Checkpoints hold both, so an interrupted training goes on.

    The authors use `adam_beta1=0.5`, `adam_beta2=0.999` and rates that fall along a cosine to a hundredth: 1e-4 for the generator,
    1e-3 for the discriminator.

    Args:
        model, args, and further arguments: as for `Trainer`.
        discriminator: called with simulated or real images and the clean ones, returns `logits`.
        discriminator_learning_rate: at the start.
        pair_weight: of the mean absolute error in the generator's loss.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        discriminator: PreTrainedModel,
        discriminator_steps: int = 3,
        discriminator_learning_rate: float = 1e-3,
        pair_weight: float = PAIR_WEIGHT,
        **kwargs: Any,
    ):
        if discriminator_steps < 1:
            raise ValueError(f"`discriminator_steps` must be at least 1, not {discriminator_steps}")
        super().__init__(model=model, args=args, **kwargs)
        self.discriminator_steps, self.pair_weight = discriminator_steps, pair_weight
        self.discriminator_learning_rate = discriminator_learning_rate
        optimizer = torch.optim.Adam(
            discriminator.parameters(), lr=discriminator_learning_rate, betas=(args.adam_beta1, args.adam_beta2)
        )
        self.discriminator, self.discriminator_optimizer = self.accelerator.prepare(
            discriminator.to(args.device).train(), optimizer
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        inputs = self._prepare_inputs(inputs)
        model.train()
        for _ in range(self.discriminator_steps):
            self.discriminator_step(model, inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def discriminator_step(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        clean, degraded = inputs["pixel_values"], inputs["labels"]
        with torch.no_grad():
            simulated = model(pixel_values=clean).degraded_pixel_values
        self.discriminator.requires_grad_(True)
        for group in self.discriminator_optimizer.param_groups:
            group["lr"] = self.discriminator_learning_rate * self._remaining_rate()
        self.discriminator_optimizer.zero_grad()
        loss = discriminator_loss(
            self.discriminator(degraded, clean).logits, self.discriminator(simulated, clean).logits
        )
        self.accelerator.backward(loss)
        self.discriminator_optimizer.step()
        return loss.detach()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        clean, degraded = inputs["pixel_values"], inputs["labels"]
        outputs = model(pixel_values=clean)
        self.discriminator.requires_grad_(False)
        logits = self.discriminator(outputs.degraded_pixel_values, clean).logits
        pair = nn.functional.l1_loss(outputs.degraded_pixel_values, degraded)
        loss = generator_loss(adversarial_loss(logits), pair, self.pair_weight)
        return (loss, outputs) if return_outputs else loss

    def _remaining_rate(self) -> float:
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["pixel_values", "labels"]  # the generator itself does not take `labels`

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {
                "model": self.accelerator.unwrap_model(self.discriminator).state_dict(),
                "optimizer": self.discriminator_optimizer.state_dict(),
            }
            torch.save(state, Path(output_dir) / "discriminator.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / "discriminator.pt", map_location=self.args.device, weights_only=True)
            self.accelerator.unwrap_model(self.discriminator).load_state_dict(state["model"])
            self.discriminator_optimizer.load_state_dict(state["optimizer"])


class BatchNormFreezing(TrainerCallback):
    """Freezes the statistics of BatchNorm for a part of the training: frozen layers normalize as in eval mode.

    Args:
        epochs: how many of the last epochs are treated otherwise than those before.
        frozen: "last" freezes the statistics in the last epochs; "first" freezes them until then, as the authors' script does.
    """

    def __init__(self, epochs: int = 20, frozen: str = "last"):
        if frozen not in ("first", "last"):
            raise ValueError(f"`frozen` must be 'first' or 'last', not {frozen!r}")
        self.epochs, self.frozen = epochs, frozen
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []

    def on_epoch_begin(
        self, args: TrainingArguments, state: Any, control: Any, model: nn.Module, **kwargs: Any
    ) -> None:
        among_last = state.num_train_epochs - round(state.epoch or 0) <= self.epochs
        if among_last == (self.frozen == "last"):
            self.freeze(model)
        else:
            self.thaw()

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.thaw()

    def freeze(self, model: nn.Module) -> None:
        """`Trainer` puts the whole model into train mode before each step, so the layers are set back as they run."""
        if not self.hooks:
            norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
            self.hooks = [norm.register_forward_pre_hook(lambda module, _: module.eval() and None) for norm in norms]

    def thaw(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
