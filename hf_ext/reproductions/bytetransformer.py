"""ByteTransformer: what leaving out the padding of BERT-base changes (nothing but the time)."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel

from hf_ext.benchmarks import Contest, compare
from hf_ext.benchmarks.bytetransformer import BATCH, LENGTH, batch, call, uniform
from hf_ext.reproductions import Experiment, Row, Run
from hf_ext.surgery.bytetransformer import disable_padding_free, enable_padding_free


def padding_free(run: Run) -> list[Row]:
    """BERT-base with random weights, lengths uniform in 0.2 to 1 times the longest (the setting of section V), fp32."""
    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval()
    inputs = batch(uniform())
    mask = inputs["attention_mask"].bool()
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state
        found = enable_padding_free(model)(**inputs).last_hidden_state
    difference = (found - expected)[mask].abs().max().item()

    def free() -> None:
        enable_padding_free(model)
        call(model, **inputs)()

    def padded() -> None:
        disable_padding_free(model)
        call(model, **inputs)()

    result = compare(Contest("BERT-base", free, padded, "padded, SDPA", threads=2), rounds=run.options["rounds"])
    return [
        Row("largest difference at a real token", difference),
        Row("states at padding that are not 0", float(found[~mask].count_nonzero())),
        Row("share of real tokens", mask.float().mean().item()),
        Row("padded time / padding-free time", result.ratio, note=f"batch {BATCH}, up to {LENGTH} tokens, two cores"),
    ]


EXPERIMENTS = {
    "padding_free": Experiment(
        "Outputs and time of BERT-base without padding",
        padding_free,
        minutes=2,
        options={"rounds": (5, "runs of either form, of which the median counts")},
    )
}
