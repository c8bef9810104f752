"""zhouhaoyi/Informer2020 checkpoints (`checkpoint.pth`, a bare state dict).

`arguments` are those of the reference's `Informer` or `InformerStack`, with `padding` and `model` of its main_informer.py; the whole
`vars(args)` of that script is understood too.
"""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import WeightConverter, WeightRenaming

from hf_ext.models.informer import InformerGenerativeConfig

from .operations import Flatten

MODEL = "InformerGenerativeForPrediction"
# The constructor's defaults; `padding` and `model` are main_informer.py's.
DEFAULTS = {
    "enc_in": None,
    "dec_in": None,
    "c_out": None,
    "seq_len": 96,
    "label_len": 48,
    "out_len": None,
    "pred_len": 24,
    "factor": 5,
    "d_model": 512,
    "n_heads": 8,
    "e_layers": None,
    "s_layers": None,
    "d_layers": 2,
    "d_ff": 512,
    "dropout": 0.0,
    "attn": "prob",
    "embed": "fixed",
    "freq": "h",
    "activation": "gelu",
    "output_attention": False,
    "distil": True,
    "mix": True,
    "padding": 0,
    "model": "informer",
}
# The rest of main_informer.py: the training run and the files.
IGNORED_NAMES = """
    batch_size checkpoints cols data data_path des detail_freq device device_ids devices do_predict features gpu inverse itr
    learning_rate loss lradj num_workers patience root_path target train_epochs use_amp use_gpu use_multi_gpu
"""
IGNORED = frozenset(IGNORED_NAMES.split())
DEPTHS = {"informer": 3, "informerstack": [3, 2, 1]}
CALENDAR_FEATURES = {"h": 4, "t": 5, "s": 6, "m": 1, "a": 1, "w": 2, "d": 3, "b": 3}  # the reference's `freq_map`

RULES = [
    WeightRenaming(r"^module\.", ""),  # saved under DataParallel
    WeightRenaming(r"^enc_embedding\.", "model.encoder.embeddings."),
    WeightRenaming(r"^dec_embedding\.", "model.decoder.embeddings."),
    WeightRenaming(r"\.value_embedding\.tokenConv\.", ".value_embedding."),
    WeightRenaming(r"\.temporal_embedding\.embed\.", ".calendar_embedding."),
    WeightRenaming(r"\.temporal_embedding\.(\w+)_embed\.", r".calendar_embedding.tables.\1."),
    WeightRenaming(r"^encoder\.(attn_layers|conv_layers|norm)\.", r"encoder.encoders.0.\1."),
    WeightRenaming(r"^encoder\.encoders\.(\d+)\.attn_layers\.", r"model.encoder.branches.\1.layers."),
    WeightRenaming(r"^encoder\.encoders\.(\d+)\.conv_layers\.", r"model.encoder.branches.\1.distilling."),
    WeightRenaming(r"^encoder\.encoders\.(\d+)\.norm\.", r"model.encoder.branches.\1.layernorm."),
    WeightRenaming(r"^decoder\.layers\.", "model.decoder.layers."),
    WeightRenaming(r"^decoder\.norm\.", "model.decoder.layernorm."),
    WeightRenaming(r"^projection\.", "head."),
    WeightRenaming(r"\.downConv\.", ".conv."),
    WeightRenaming(r"\.(?:self_)?attention\.", ".self_attn."),
    WeightRenaming(r"\.cross_attention\.", ".cross_attn."),
    WeightRenaming(r"\.query_projection\.", ".q_proj."),
    WeightRenaming(r"\.key_projection\.", ".k_proj."),
    WeightRenaming(r"\.value_projection\.", ".v_proj."),
    WeightRenaming(r"\.out_projection\.", ".o_proj."),
    WeightRenaming(r"\.norm1\.", ".self_attn_norm."),
    WeightRenaming(r"(model\.encoder\..*)\.norm2\.", r"\1.mlp_norm."),
    WeightRenaming(r"(model\.decoder\..*)\.norm2\.", r"\1.cross_attn_norm."),
    WeightRenaming(r"\.norm3\.", ".mlp_norm."),
    WeightRenaming(r"\.conv1\.", ".mlp.fc1."),
    WeightRenaming(r"\.conv2\.", ".mlp.fc2."),
    WeightConverter("mlp.fc1.weight", "mlp.fc1.weight", [Flatten(1)]),
    WeightConverter("mlp.fc2.weight", "mlp.fc2.weight", [Flatten(1)]),
]
IGNORE = ["*.position_embedding.pe", "*_embed.emb.weight"]  # the sinusoids, which are computed


def config(arguments: dict[str, Any]) -> InformerGenerativeConfig:
    """
    Raises:
        ValueError: an argument that the reference does not have, one that is needed and missing, or one that it cannot serve.
    """
    if unknown := sorted(set(arguments) - set(DEFAULTS) - IGNORED):
        raise ValueError(
            f"Informer has no argument {', '.join(unknown)}; those with an effect are {', '.join(DEFAULTS)}"
        )
    given = DEFAULTS | arguments
    if missing := [name for name in ("enc_in", "dec_in", "c_out") if given[name] is None]:
        raise ValueError(f"Informer needs {', '.join(missing)}: how many columns were read and forecast")
    if given["enc_in"] != given["dec_in"]:
        raise ValueError(
            f"`dec_in` must equal `enc_in` ({given['enc_in']}), because the decoder starts from the encoder's last steps; "
            f"got {given['dec_in']}"
        )
    kind = given["model"].lower()
    if kind not in DEPTHS:
        raise ValueError(f"`model` must be informer or informerstack, got {given['model']!r}")
    if given["embed"] not in ("timeF", "fixed", "learned"):
        raise ValueError(f"`embed` must be timeF, fixed or learned, got {given['embed']!r}")
    fields: dict[str, Any] = {
        "context_length": given["seq_len"],
        "label_length": given["label_len"],
        "prediction_length": given["pred_len"] if given["out_len"] is None else given["out_len"],
        "num_input_channels": given["enc_in"],
        "num_output_channels": given["c_out"],
        "num_time_features": _num_time_features(given),
        "calendar_embedding": "linear" if given["embed"] == "timeF" else given["embed"],
        "hidden_size": given["d_model"],
        "num_attention_heads": given["n_heads"],
        "intermediate_size": given["d_ff"] or 4 * given["d_model"],
        "encoder_depths": _depths(kind, given),
        "num_decoder_layers": given["d_layers"],
        "attention_type": "prob" if given["attn"] == "prob" else "full",
        "sampling_factor": given["factor"],
        "distil": bool(given["distil"]),
        "mix_heads": bool(given["mix"]),
        "decoder_fill": given["padding"],
        "hidden_act": "relu" if given["activation"] == "relu" else "gelu",
        "dropout": given["dropout"],
    }
    if given["output_attention"]:
        fields |= {"output_attentions": True, "attn_implementation": "eager"}
    return InformerGenerativeConfig(**fields)


def _num_time_features(given: dict[str, Any]) -> int:
    """The reference goes by the last letter of "h" or "15t"; its tables use minutes for "t" alone."""
    letter = given["freq"][-1:]
    if letter not in CALENDAR_FEATURES:
        raise ValueError(f"`freq` must end in one of {', '.join(CALENDAR_FEATURES)}, got {given['freq']!r}")
    if given["embed"] != "timeF":
        return 5 if letter == "t" else 4
    return CALENDAR_FEATURES[letter]


def _depths(kind: str, given: dict[str, Any]) -> list[int]:
    """`e_layers`, a number or for the stack a list; main_informer.py gives the stack's as `s_layers`, "3,2,1"."""
    depths = given["e_layers"]
    if kind == "informerstack" and given["s_layers"] is not None:
        depths = given["s_layers"]
        depths = [int(depth) for depth in depths.split(",")] if isinstance(depths, str) else depths
    depths = DEPTHS[kind] if depths is None else depths
    if isinstance(depths, int) == (kind == "informerstack"):
        raise ValueError(f"`e_layers` must be a number for informer and a list for informerstack, got {depths}")
    return [depths] if isinstance(depths, int) else list(depths)
