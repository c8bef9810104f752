"""Knowledge distillation for any two Transformers models with logits: the losses, and a `Trainer` that adds them.

    DistillationTrainer(model=student, teacher=teacher, args=TrainingArguments(...), train_dataset=dataset).train()

Hinton et al., arXiv 1503.02531 (responses); TinyBERT, arXiv 1909.10351 (features, attention); MiniLMv2, arXiv 2012.15828 (relations); as
sorted by "A Survey of Techniques for Optimizing Transformer Inference", arXiv 2307.07982.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer
from transformers.loss.loss_utils import LOSS_MAPPING


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 2.0,
    alpha: float = 0.5,
    hard: bool = False,
) -> torch.Tensor:
    """alpha T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) CE(s, labels), the mean over all that has a label.

    Args:
        student_logits, teacher_logits: (..., classes).
        labels: (...) classes; -100 counts nowhere.
        temperature: T, above 0.
        alpha: share of the teacher, 0 to 1.
        hard: the teacher's most likely class takes the place of its distribution (DeiT, arXiv 2012.12877); T is then not used.

    Raises:
        ValueError: shapes, a temperature or a share that do not fit.
    """
    if student_logits.shape != teacher_logits.shape or labels.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"logits of student and teacher are (..., classes) and labels (...); got {tuple(student_logits.shape)}, "
            f"{tuple(teacher_logits.shape)} and {tuple(labels.shape)}"
        )
    if temperature <= 0 or not 0 <= alpha <= 1:
        raise ValueError(f"temperature must be above 0 and alpha from 0 to 1, got {temperature} and {alpha}")
    counted = labels.flatten() != -100
    student, teacher = (x.flatten(0, -2)[counted].float() for x in (student_logits, teacher_logits))
    own = F.cross_entropy(student, labels.flatten()[counted])
    if hard:
        return alpha * F.cross_entropy(student, teacher.argmax(-1)) + (1 - alpha) * own
    soft = F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    return alpha * temperature**2 * soft + (1 - alpha) * own


def feature_loss(student: torch.Tensor, teacher: torch.Tensor, projection: nn.Module | None = None) -> torch.Tensor:
    """Mean squared difference of hidden states (..., channels); `projection` brings the student's to the teacher's width."""
    return F.mse_loss(student if projection is None else projection(student), teacher)


def attention_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of attention maps (batch, heads, queries, keys), the mean over heads first where their numbers differ."""
    student, teacher = (x if student.shape == teacher.shape else x.mean(1) for x in (student, teacher))
    tiny = torch.finfo(student.dtype).tiny
    ratio = teacher.clamp_min(tiny).log() - student.clamp_min(tiny).log()
    return (teacher * ratio).sum(-1).mean()


def relation_loss(student: torch.Tensor, teacher: torch.Tensor, heads: int) -> torch.Tensor:
    """KL of token-to-token relations softmax(X X^T / sqrt(d)) in `heads` groups of channels; widths may differ (MiniLMv2, eq. 4).

    Args:
        student, teacher: (batch, tokens, channels): queries, keys, values or hidden states. `heads` divides both widths.
    """

    def relations(x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        return (x @ x.mT * x.shape[-1] ** -0.5).softmax(-1)

    return attention_loss(relations(student), relations(teacher))


class DistillationTrainer(Trainer):
    """A `Trainer` whose loss is `distillation_loss` of the model's logits and those of a teacher.

    Args:
        teacher: any model that takes the same inputs and gives logits of the same classes. It is not trained.
        temperature, alpha, hard: as in `distillation_loss`.
        The others are `Trainer`'s.
    """

    def __init__(
        self,
        *args: Any,
        teacher: nn.Module,
        temperature: float = 2.0,
        alpha: float = 0.5,
        hard: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        self.settings = {"temperature": temperature, "alpha": alpha, "hard": hard}
        self.predicts_the_next_token = getattr(self.model, "loss_function", None) is LOSS_MAPPING["ForCausalLM"]
        self.model_accepts_loss_kwargs = False  # the loss is a mean: Trainer divides by its accumulation steps

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if "labels" not in inputs:
            raise ValueError(f"Distillation takes labels (-100 where there is none); a batch has {', '.join(inputs)}")
        outputs = model(**inputs)
        with torch.no_grad():
            expected = self.teacher(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        student, labels = outputs.logits, inputs["labels"]
        if self.predicts_the_next_token:
            student, expected, labels = student[:, :-1], expected[:, :-1], labels[:, 1:]
        loss = distillation_loss(student, expected, labels, **self.settings)
        return (loss, outputs) if return_outputs else loss
