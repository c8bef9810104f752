"""Who writes to the residual stream of a model family, and which norms read it: the table that `pre_rmsnorm` goes by.

Transformers 5.23. Every row was tried: see tests/surgery/test_pre_rmsnorm.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .families import FAMILIES, Branch


@dataclass(frozen=True)
class Stream:
    """A residual stream that, apart from its end, is read through LayerNorms alone. What a model does not have is passed over.

    Attributes:
        layers: from the base model; a number is an index, from the end where it is negative.
        norms: norms of a layer, each with all of the linear layers that read it; none where its weight cannot be folded.
        outputs: the linear layers that write to the stream, seen from a layer.
        sources: what is summed before the first layer, from the base model: layers, embeddings, parameters.
        start: the module whose output the stream begins with.
        always_recentred: whether the mean of what comes in has to be taken off in every forward, since it is not linear in any weights.
        final: norms that read the end of the stream, from the base model or, failing that, from the model.
        scales: the factors of each channel (LayerScale) that a layer multiplies an output by: factor, output.
        places: where the stream's model may stand inside the base model.
        tied: whether a source is the table of a language model's head, in configurations that tie it.
        when: fields of the configuration, and the values for which this row holds.
        keeps_width: whether the model takes the width before the layers for the one behind the last norm.
        compressible: whether nothing in the layers takes the width of the stream for that of a norm's output.
    """

    layers: str
    norms: tuple[tuple[str, tuple[str, ...]], ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...] = ()
    start: str | None = None
    always_recentred: bool = False
    final: tuple[str, ...] = ()
    scales: tuple[tuple[str, str], ...] = ()
    places: tuple[str, ...] = ("",)
    tied: bool = False
    when: tuple[tuple[str, object], ...] = ()
    keeps_width: bool = False
    compressible: bool = True


def of_branches(layers: str, *branches: Branch, **fields: object) -> Stream:
    """A stream of layers that consist of these branches; those that share a norm read it in parallel."""
    readers: dict[str, tuple[str, ...]] = {}
    for branch in branches:
        readers[branch.norm_in] = readers.get(branch.norm_in, ()) + branch.inputs
    return Stream(layers, tuple(readers.items()), tuple(branch.output for branch in branches), **fields)


def of_family(name: str, **fields: object) -> Stream:
    """The stream of a row of `FAMILIES`."""
    family = FAMILIES[name]
    return of_branches(family.layers, family.attention, family.mlp, final=(family.norm,), **fields)


def branch(norm: str, inputs: str, output: str) -> Branch:
    """`inputs`: names apart by spaces, "PREFIX{a,b}" for PREFIXa and PREFIXb"""
    prefix, brace, rest = inputs.partition("{")
    names = [prefix + name for name in rest.rstrip("}").split(",")] if brace else inputs.split()
    return Branch(norm, None, inputs=tuple(names), output=output)


TOKENS = ("cls_token", "mask_token", "distillation_token", "position_embeddings", "patch_embeddings.projection")
PATCHES = {"sources": tuple(f"embeddings.{name}" for name in TOKENS), "start": "embeddings"}
VIT = of_family("vit", **PATCHES)
REFERENCE_VIT = replace(VIT, final=("layernorm", "layernorm.norm"))  # the second where it pools (`prenorm_reference`)
OPT_LIKE = (FAMILIES["opt"].attention, FAMILIES["opt"].mlp)
GPT2 = of_family("gpt2", sources=("wte", "wpe"), start="drop", tied=True, keeps_width=True)
CROSS_ATTENTION = ("ln_cross_attn", ("crossattention.q_attn",))
GPTJ = of_branches(
    "h",
    branch("ln_1", "attn.{q_proj,k_proj,v_proj}", "attn.out_proj"),
    branch("ln_1", "mlp.fc_in", "mlp.fc_out"),
    sources=("wte",),
    start="drop",
    final=("ln_f",),
    tied=True,
    keeps_width=True,
)
BLOOM = of_branches(
    "h",
    branch("input_layernorm", "self_attention.query_key_value", "self_attention.dense"),
    branch("post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    start="word_embeddings_layernorm",
    always_recentred=True,
    final=("ln_f",),
)
FALCON = replace(BLOOM, sources=("word_embeddings",), start=None, always_recentred=False, tied=True)
FALCON_ATTENTION, FALCON_MLP = (readers for _, readers in FALCON.norms)
CLIP_LAYER = (
    branch("layer_norm1", "self_attn.{q_proj,k_proj,v_proj}", "self_attn.out_proj"),
    branch("layer_norm2", "mlp.fc1", "mlp.fc2"),
)
CLIP_TEXT = of_branches(
    "encoder.layers",
    *CLIP_LAYER,
    sources=("embeddings.token_embedding", "embeddings.position_embedding"),
    start="embeddings",
    final=("final_layer_norm",),
    places=("text_model", ""),
)
CLIP_VISION = of_branches(
    "encoder.layers",
    *CLIP_LAYER,
    start="pre_layrnorm",
    always_recentred=True,
    final=("post_layernorm",),
    places=("vision_model", ""),
)
SIGLIP_VISION = replace(
    CLIP_VISION,
    sources=("embeddings.patch_embedding", "embeddings.position_embedding"),
    start="embeddings",
    always_recentred=False,
)
WHISPER_CROSS = branch("encoder_attn_layer_norm", "encoder_attn.q_proj", "encoder_attn.out_proj")
SWIN_LAYER = (
    ("layernorm_before", ()),
    ("layernorm_after", ("mlp.fc1",)),
)  # between norm and readers, windows are padded with zeros

STREAMS: dict[str, tuple[Stream, ...]] = {
    "gpt2": (replace(GPT2, norms=(*GPT2.norms, CROSS_ATTENTION), outputs=(*GPT2.outputs, "crossattention.c_proj")),),
    "gpt_neo": (
        of_branches(
            "h",
            branch("ln_1", "attn.attention.{q_proj,k_proj,v_proj}", "attn.attention.out_proj"),
            branch("ln_2", "mlp.c_fc", "mlp.c_proj"),
            sources=("wte", "wpe"),
            start="drop",
            final=("ln_f",),
            tied=True,
            keeps_width=True,
        ),
    ),
    "gptj": (GPTJ,),
    "codegen": (replace(GPTJ, norms=(("ln_1", ("attn.qkv_proj", "mlp.fc_in")),)),),
    "gpt_neox": (
        of_branches(
            "layers",
            branch("input_layernorm", "attention.query_key_value", "attention.dense"),
            branch("post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            sources=("embed_in",),
            start="emb_dropout",
            final=("final_layer_norm",),
            tied=True,
        ),
    ),
    "opt": (of_family("opt", sources=("decoder.embed_tokens", "decoder.embed_positions"), tied=True),),
    "bloom": (BLOOM,),
    "falcon": (
        replace(
            FALCON,
            norms=(
                ("input_layernorm", (*FALCON_ATTENTION, *FALCON_MLP)),
                ("ln_attn", FALCON_ATTENTION),
                ("ln_mlp", FALCON_MLP),
            ),
            when=(("parallel_attn", True),),
        ),
        replace(FALCON, when=(("parallel_attn", False),)),
    ),
    "phi": (
        of_branches(
            "layers",
            branch("input_layernorm", "self_attn.{q_proj,k_proj,v_proj}", "self_attn.dense"),
            branch("input_layernorm", "mlp.fc1", "mlp.fc2"),
            sources=("embed_tokens",),
            start="embed_dropout",
            final=("final_layernorm",),
            tied=True,
        ),
    ),
    "starcoder2": (
        of_branches(
            "layers",
            branch("input_layernorm", "self_attn.{q_proj,k_proj,v_proj}", "self_attn.o_proj"),
            branch("post_attention_layernorm", "mlp.c_fc", "mlp.c_proj"),
            sources=("embed_tokens",),
            final=("norm",),
            tied=True,
        ),
    ),
    "whisper": (
        of_branches("encoder.layers", *OPT_LIKE, always_recentred=True, final=("encoder.layer_norm",)),
        of_branches(
            "decoder.layers",
            *OPT_LIKE,
            WHISPER_CROSS,
            sources=("decoder.embed_tokens", "decoder.embed_positions"),
            final=("decoder.layer_norm",),
            tied=True,
        ),
    ),
    "clip": (CLIP_TEXT, CLIP_VISION),
    "clip_text_model": (CLIP_TEXT,),
    "clip_vision_model": (CLIP_VISION,),
    "siglip": (CLIP_TEXT, SIGLIP_VISION),
    "siglip_text_model": (CLIP_TEXT,),
    "siglip_vision_model": (SIGLIP_VISION,),
    "vit": (REFERENCE_VIT,),
    "deit": (VIT,),
    "vivit": (VIT,),
    "audio-spectrogram-transformer": (VIT,),
    "vit_mae": (
        VIT,
        replace(
            VIT,
            layers="decoder_layers",
            sources=("decoder_embed", "mask_token", "decoder_pos_embed"),
            start=None,
            final=("decoder_norm",),
            places=("decoder",),
        ),
    ),
    "videomae": (
        of_branches(
            "encoder.layer",
            branch("layernorm_before", "attention.attention.{query,key,value}", "attention.output.dense"),
            branch("layernorm_after", "intermediate.dense", "output.dense"),
            final=("layernorm", "fc_norm"),
            **PATCHES,
        ),
    ),
    "dinov2": (
        Stream(
            "encoder.layer",
            norms=(
                ("norm1", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
                ("norm2", ("mlp.fc1", "mlp.gate_proj", "mlp.up_proj")),
            ),
            outputs=("attention.o_proj", "mlp.fc2", "mlp.down_proj"),
            final=("layernorm",),
            scales=(
                ("layer_scale1.lambda1", "attention.o_proj"),
                ("layer_scale2.lambda1", "mlp.fc2"),
                ("layer_scale2.lambda1", "mlp.down_proj"),
            ),
            **PATCHES,
        ),
    ),
    "beit": (
        replace(
            VIT,
            final=("layernorm", "pooler.layernorm"),
            scales=(("lambda_1", "attention.o_proj"), ("lambda_2", "mlp.fc2")),
        ),
    ),
    "swin": (
        Stream(
            "encoder.layers.-1.blocks",
            norms=SWIN_LAYER,
            outputs=("attention.o_proj", "mlp.fc2"),
            sources=("encoder.layers.-2.downsample.reduction",),
            final=("layernorm",),
            compressible=False,
        ),
    ),
}

# What is there to refuse, and why
POST_NORM = "its norms follow the residual sum (post-norm), which is read as it is; the mean of a Pre-LN stream alone is never read"
SANDWICH = "its norms also follow each branch, whose output they keep from being mean-free"
REFUSED = {
    **dict.fromkeys(
        (
            "albert", "bart", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "marian", "mpnet", "openai-gpt",
            "roberta", "xlm", "xlm-roberta",
        ),
        POST_NORM,
    ),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "olmo2", "swinv2"), SANDWICH),
}  # fmt: skip
# Nothing to do: these have RMSNorm
RMS_FAMILIES = (
    "gemma",
    "llama",
    "mistral",
    "mixtral",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "t5",
)
# Configurations that read the stream otherwise than through a norm
RAW_FIELDS = {
    ("do_layer_norm_before", False): POST_NORM,
    ("_remove_final_layer_norm", True): "its head reads the stream without a norm (_remove_final_layer_norm=True)",
    ("apply_residual_connection_post_layernorm", True): "its residuals start behind its norms "
    "(apply_residual_connection_post_layernorm=True)",
    ("use_weighted_layer_sum", True): "its head sums hidden states without a norm (use_weighted_layer_sum=True)",
    ("apply_layernorm", False): "a backbone with apply_layernorm=False gives hidden states out without a norm",
}
# Heads that do, or the field that makes them
RAW_HEADS = {
    "BeitBackbone": True,
    "BeitForSemanticSegmentation": True,
    "CLIPForImageClassification": True,
    "VideoMAEForPreTraining": "use_mean_pooling",
}
