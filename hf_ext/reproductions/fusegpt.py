"""FuseGPT on a small byte-level Llama: the perplexity of two blocks less, removed, fused, or removed and made up for by LoRA."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from hf_ext.catalog import get_method
from hf_ext.data.text import ByteText, byte_perplexity, byte_text
from hf_ext.files import replaced_files
from hf_ext.surgery import LlmDrop, apply
from hf_ext.surgery.fusegpt import fit, fold
from hf_ext.training.fusegpt import fusion_optimizer

from . import Experiment, MissingData, Row, Run
from .training import TensorDataset, train

CONTEXT, BATCH = 128, 8
BLOCKS, GROUP, EPOCHS = 2, 4, 20
LORA_RATES = (1e-5, 3e-5, 1e-4)


def load_dense() -> PreTrainedModel:
    """The 8-layer Llama of LLM-Drop's card."""
    folder = get_method("llm_drop").card / "dense"
    if not (folder / "model.safetensors").is_file():
        raise MissingData("The small Llama is not trained yet: run `hf-ext reproduce llm_drop --experiment demo` first")
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def sequences(text: ByteText, count: int) -> torch.Tensor:
    """(count, CONTEXT): random windows of the training text."""
    return text.train[torch.randperm(len(text.train), generator=torch.Generator().manual_seed(0))[:count]]


def fused(model: PreTrainedModel, rows: torch.Tensor, **options: float | str) -> PreTrainedModel:
    torch.manual_seed(0)
    batches = [{"input_ids": batch} for batch in rows.split(BATCH)]
    return fit(model, batches, blocks=BLOCKS, group_size=GROUP, epochs=EPOCHS, **options)


def compare_recoveries(run: Run) -> list[Row]:
    """Dense, without the blocks, FuseGPT, and LoRA with the same sequences and as many steps."""
    dense, text = load_dense(), byte_text(CONTEXT)
    rows = sequences(text, int(run.options["sequences"]))
    steps = BLOCKS * EPOCHS * len(rows.split(BATCH))
    ours = fused(dense, rows)
    gone = ours.config.surgery[0]["layers"]
    without = apply(dense, LlmDrop(gone, gone))
    adapted = {rate: with_lora(run, without, rows, steps, rate) for rate in LORA_RATES}
    rate = min(adapted, key=lambda rate: byte_perplexity(adapted[rate], text.validation))
    lora = (
        f"rank 128, as many steps, rate {rate:g}: the best of {', '.join(f'{r:g}' for r in LORA_RATES)} by validation"
    )
    found = [
        ("dense", dense, f"{dense.num_parameters()} parameters"),
        ("plain removal", without, f"layers {', '.join(map(str, gone))} of 8; {without.num_parameters()} parameters"),
        ("FuseGPT", ours, f"{len(rows)} sequences, {steps} steps in all"),
        ("FuseGPT, coef_lr=0.01", fused(dense, rows, coef_lr=1e-2), ""),
        ("FuseGPT, loss kl_width", fused(dense, rows, loss="kl_width"), ""),
        ("FuseGPT, loss mse", fused(dense, rows, loss="mse"), ""),
        (
            "the same without fused weights",
            fused(dense, rows, coef_lr=0.0, base_lr=1e-3),
            "coef_lr=0, base_lr=1e-3: low-rank updates and norms alone",
        ),
        ("removal + LoRA", adapted[rate], lora),
        ("FuseGPT + light fine-tuning", fine_tuned(run, ours, rows, steps), f"{steps} more steps on the text itself"),
    ]
    return [
        Row(f"perplexity per byte, {name}", byte_perplexity(model, text.test), note=note) for name, model, note in found
    ]


def with_lora(run: Run, model: PreTrainedModel, rows: torch.Tensor, steps: int, rate: float) -> PreTrainedModel:
    torch.manual_seed(0)
    adapted = get_peft_model(
        deepcopy(model), LoraConfig(r=128, lora_alpha=128, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    train(
        replace(run, folder=run.folder / f"lora-{rate:g}"),
        adapted,
        TensorDataset(input_ids=rows, labels=rows),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=rate,
        lr_scheduler_type="cosine",
    )
    return adapted.merge_and_unload().eval()


def fine_tuned(run: Run, model: PreTrainedModel, rows: torch.Tensor, steps: int) -> PreTrainedModel:
    """A copy, folded after its coefficients, low-rank updates and norms went on training with the language model's own loss."""
    model = deepcopy(model)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(run.folder / "light"),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            lr_scheduler_type="cosine",
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=TensorDataset(input_ids=rows, labels=rows),
        optimizers=(fusion_optimizer(model), None),
    )
    trainer.train()
    return fold(model).eval()


def make_demo(run: Run) -> list[Row]:
    """Fuses two blocks of the small Llama with more sequences, folds it, and saves it to the card: a plain Llama of six layers."""
    from transformers import AutoTokenizer

    dense, text = load_dense(), byte_text(CONTEXT)
    rows = sequences(text, int(run.options["sequences"]))
    ours = fold(fused(dense, rows))
    with replaced_files(run.card) as folder:
        ours.save_pretrained(folder)
        AutoTokenizer.from_pretrained(get_method("llm_drop").card / "dense").save_pretrained(folder)
    return [
        Row("held-out perplexity per byte, dense, 8 layers", byte_perplexity(dense, text.test)),
        Row(
            f"held-out perplexity per byte, fused, {ours.config.num_hidden_layers} layers",
            byte_perplexity(ours, text.test),
            dataset="scikit-learn descriptions",
            metric_type="perplexity",
            note=f"{len(rows)} sequences",
        ),
    ]


EXPERIMENTS = {
    "recover": Experiment(
        "Perplexity of two blocks less, by how they are made up for",
        compare_recoveries,
        minutes=2,
        options={"sequences": (16, "calibration sequences of 128 bytes")},
    ),
    "demo": Experiment(
        "The six-layer Llama that the card ships",
        make_demo,
        minutes=2,
        options={"sequences": (128, "calibration sequences of 128 bytes")},
    ),
}
