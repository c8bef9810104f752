"""The 83 methods: what each is, where it lives, and whether it works yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

KINDS = ("model", "diffusion", "op", "adapter", "surgery", "training", "catalogue", "system")


@dataclass(frozen=True)
class Method:
    """One published method.

    Attributes:
        slug: folder name, and the name on the command line.
        title, arxiv: of the paper; `arxiv` is "" for the few that are not there.
        kind: one or more of `KINDS`, joined by "+", the main one first.
        task: pipeline task (the Hub's tag where it has one) or socket; "any" works on models of any task.
        reference, licence: the repository that the port is held against, and its SPDX licence ("none": it has none);
            both are "" where the authors published no code.
        status: "ready" (loads, equals its reference, passes the passport) or "planned".
        home: package below `hf_ext` that holds its classes.
        config: its configuration class, when it has one of its own.
        classes: Auto class (or Diffusers base class) -> class name.
        others: further configuration class -> the same for it, where a method has models of several types.
        cannot: passport check -> why this method cannot pass it by its nature.
    """

    slug: str
    title: str
    arxiv: str
    kind: str
    task: str
    reference: str
    licence: str
    status: str = "planned"
    home: str = ""
    config: str = ""
    classes: dict[str, str] = field(default_factory=dict)
    others: dict[str, dict[str, str]] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.status == "ready"

    def load(self, name: str) -> Any:
        """The class or function `name` of this method."""
        return getattr(import_module(f"hf_ext.{self.home}"), name)

    def config_class(self) -> type | None:
        return self.load(self.config) if self.config else None

    @property
    def families(self) -> dict[str, dict[str, str]]:
        """Configuration class -> Auto class -> class name, of `config` and `others`."""
        return ({self.config: self.classes} if self.config else {}) | self.others

    def model_classes(self, config: str = "") -> list[type]:
        """The model classes that this method brings, the base model first; those of another configuration class where one is named."""
        classes = self.others[config] if config else self.classes
        names = (name for auto, name in classes.items() if auto.startswith("AutoModel") or auto == "ModelMixin")
        return [self.load(name) for name in dict.fromkeys(names)]

    @property
    def card(self) -> Path:
        """The folder that goes to the Hub: README.md, config.json and, where small weights were trained, those."""
        from . import model_cards

        return Path(model_cards.__file__).parent / self.slug

    @property
    def checkpoint(self) -> Path | None:
        """The card's folder, where it holds trained weights."""
        held = any((self.card / name).is_file() for name in ("model.safetensors", "model_index.json"))
        return self.card if held else None


def get_method(slug: str) -> Method:
    """The method with that slug; a `ValueError` that lists near names otherwise."""
    if slug in METHODS:
        return METHODS[slug]
    from difflib import get_close_matches

    near = get_close_matches(slug, METHODS, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `hf-ext list` shows all of them"
    raise ValueError(f"There is no method '{slug}'{hint}")


WORKED_OUT: dict[str, Method] = {
    method.slug: method
    for method in (
        Method(
            slug="crossvit",
            title="CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification",
            arxiv="2103.14899",
            kind="model",
            task="image-classification",
            reference="IBM/CrossViT",
            licence="Apache-2.0",
            status="ready",
            home="models.crossvit",
            config="CrossVitConfig",
            classes={
                "AutoModel": "CrossVitModel",
                "AutoModelForImageClassification": "CrossVitForImageClassification",
                "AutoImageProcessor": "CrossVitImageProcessor",
            },
        ),
        Method(
            slug="hat",
            title="HAT: Hybrid Attention Transformer for Image Restoration",
            arxiv="2309.05239",
            kind="model",
            task="image-to-image",
            reference="XPixelGroup/HAT",
            licence="Apache-2.0",
            status="ready",
            home="models.hat",
            config="HatConfig",
            classes={
                "AutoModel": "HatModel",
                "AutoModelForImageToImage": "HatForImageSuperResolution",
                "AutoImageProcessor": "HatImageProcessor",
            },
        ),
        Method(
            slug="itransformer",
            title="iTransformer: Inverted Transformers Are Effective for Time Series Forecasting",
            arxiv="2310.06625",
            kind="model",
            task="time-series-forecasting",
            reference="thuml/iTransformer",
            licence="MIT",
            status="ready",
            home="models.itransformer",
            config="ITransformerConfig",
            classes={
                "AutoModel": "ITransformerModel",
                "AutoModelForTimeSeriesPrediction": "ITransformerForPrediction",
                "AutoModelForSequenceClassification": "ITransformerForTimeSeriesClassification",
                "AutoModelForPreTraining": "ITransformerForReconstruction",
            },
        ),
        Method(
            slug="gpht",
            title="Generative Pretrained Hierarchical Transformer for Time Series Forecasting",
            arxiv="2402.16516",
            kind="model",
            task="time-series-forecasting",
            reference="icantnamemyself/GPHT",
            licence="MIT",
            status="ready",
            home="models.gpht",
            config="GPHTConfig",
            classes={"AutoModel": "GPHTModel", "AutoModelForTimeSeriesPrediction": "GPHTForPrediction"},
        ),
        Method(
            slug="tpgn",
            title="PGN: The RNN's New Successor is Effective for Long-Range Time Series Forecasting",
            arxiv="2409.17703",
            kind="op+model",
            task="time-series-forecasting",
            reference="Water2sea/TPGN",
            licence="none",
            status="ready",
            home="models.tpgn",
            config="TPGNConfig",
            classes={"AutoModel": "TPGNModel", "AutoModelForTimeSeriesPrediction": "TPGNForPrediction"},
            cannot={
                "attention_implementations": "it has no attention: a gated network reads all earlier steps at once"
            },
        ),
        Method(
            slug="gla",
            title="Gated Linear Attention Transformers with Hardware-Efficient Training",
            arxiv="2312.06635",
            kind="op+model",
            task="text-generation",
            reference="fla-org/flash-linear-attention",
            licence="MIT",
            status="ready",
            home="models.gla",
            config="GLAConfig",
            classes={"AutoModel": "GLAModel", "AutoModelForCausalLM": "GLAForCausalLM"},
            cannot={
                "attention_implementations": "there is no softmax attention to choose an implementation for, unless the model is a hybrid",
            },
        ),
        Method(
            slug="aaren",
            title="Attention as an RNN",
            arxiv="2405.13956",
            kind="op+model",
            task="time-series-forecasting",
            reference="",
            licence="",
            status="ready",
            home="models.aaren",
            config="AarenConfig",
            classes={
                "AutoModel": "AarenModel",
                "AutoModelForTimeSeriesPrediction": "AarenForPrediction",
                "AutoModelForSequenceClassification": "AarenForTimeSeriesClassification",
            },
            cannot={
                "attention_implementations": "one learned query asks every prefix; softmax attention elsewhere has a query per token",
            },
        ),
        Method(
            slug="flashrnn",
            title="FlashRNN: Optimizing Traditional RNNs on Modern Hardware",
            arxiv="2412.07752",
            kind="op+model",
            task="text-generation",
            reference="NX-AI/flashrnn",
            licence="LicenseRef-NXAI-Community",
            status="ready",
            home="models.flashrnn",
            config="FlashRNNConfig",
            classes={
                "AutoModel": "FlashRNNModel",
                "AutoModelForCausalLM": "FlashRNNForCausalLM",
                "AutoModelForSequenceClassification": "FlashRNNForSequenceClassification",
            },
            cannot={"attention_implementations": "there is no attention: recurrent layers mix tokens"},
        ),
        Method(
            slug="lmuformer",
            title="LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units",
            arxiv="2402.04882",
            kind="op+model",
            task="audio-classification",
            reference="zeyuliu1037/LMUFormer",
            licence="MIT",
            status="ready",
            home="models.lmuformer",
            config="LMUFormerConfig",
            classes={
                "AutoModel": "LMUFormerModel",
                "AutoModelForAudioClassification": "LMUFormerForAudioClassification",
                "AutoFeatureExtractor": "LMUFormerFeatureExtractor",
            },
            cannot={"attention_implementations": "there is no softmax attention: a Legendre memory mixes frames"},
        ),
        Method(
            slug="deltanet",
            title="Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues",
            arxiv="2411.12537",
            kind="op+model",
            task="text-generation",
            reference="fla-org/flash-linear-attention",
            licence="MIT",
            status="ready",
            home="models.deltanet",
            config="DeltaNetConfig",
            classes={"AutoModel": "DeltaNetModel", "AutoModelForCausalLM": "DeltaNetForCausalLM"},
            others={
                "SignedMambaConfig": {
                    "AutoModel": "SignedMambaModel",
                    "AutoModelForCausalLM": "SignedMambaForCausalLM",
                },
            },
            cannot={
                "attention_implementations": "there is no softmax attention to choose an implementation for, unless the model is a hybrid",
            },
        ),
        Method(
            slug="llm_drop",
            title="What Matters in Transformers? Not All Attention is Needed",
            arxiv="2406.15786",
            kind="surgery",
            task="text-generation",
            reference="CASE-Lab-UMD/LLM-Drop",
            licence="Apache-2.0",
            status="ready",
            home="surgery",
            classes={"AutoModel": "SurgicalLlamaModel", "AutoModelForCausalLM": "SurgicalLlamaForCausalLM"},
        ),
        Method(
            slug="pixart_delta",
            title="PIXART-δ: Fast and Controllable Image Generation with Latent Consistency Models",
            arxiv="2401.05252",
            kind="diffusion+adapter",
            task="text-to-image",
            reference="PixArt-alpha/PixArt-alpha",
            licence="Apache-2.0",
            status="ready",
            home="models.pixart_delta",
            classes={
                "ModelMixin": "PixArtControlNetTransformer2DModel",
                "DiffusionPipeline": "PixArtAlphaControlNetPipeline",
            },
            cannot={
                "load_in_8bit": "Diffusers' bitsandbytes quantizer asks for a GPU; the text encoder, which is what the method quantizes, "
                "is tested on CPU"
            },
        ),
        Method(
            slug="efficientformer",
            title="EfficientFormer: Vision Transformers at MobileNet Speed",
            arxiv="2206.01191",
            kind="model",
            task="image-classification",
            reference="snap-research/EfficientFormer",
            licence="LicenseRef-Snap",
            status="ready",
            home="models.efficientformer",
            config="EfficientFormerConfig",
            classes={
                "AutoModel": "EfficientFormerModel",
                "AutoModelForImageClassification": "EfficientFormerForImageClassification",
                "AutoBackbone": "EfficientFormerBackbone",
                "AutoImageProcessor": "EfficientFormerImageProcessor",
            },
        ),
        Method(
            slug="nextvit",
            title="Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios",
            arxiv="2207.05501",
            kind="model",
            task="image-classification",
            reference="bytedance/Next-ViT",
            licence="Apache-2.0",
            status="ready",
            home="models.nextvit",
            config="NextViTConfig",
            classes={
                "AutoModel": "NextViTModel",
                "AutoModelForImageClassification": "NextViTForImageClassification",
                "AutoBackbone": "NextViTBackbone",
                "AutoImageProcessor": "NextViTImageProcessor",
            },
        ),
        Method(
            slug="t2t_vit",
            title="Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
            arxiv="2101.11986",
            kind="model",
            task="image-classification",
            reference="yitu-opensource/T2T-ViT",
            licence="BSD-3-Clause-Clear",
            status="ready",
            home="models.t2t_vit",
            config="T2TViTConfig",
            classes={
                "AutoModel": "T2TViTModel",
                "AutoModelForImageClassification": "T2TViTForImageClassification",
                "AutoBackbone": "T2TViTBackbone",
                "AutoImageProcessor": "T2TViTImageProcessor",
            },
        ),
        Method(
            slug="fmvit",
            title="FMViT: A multiple-frequency mixing Vision Transformer",
            arxiv="2311.05707",
            kind="model",
            task="image-classification",
            reference="",
            licence="",
            status="ready",
            home="models.fmvit",
            config="FMViTConfig",
            classes={
                "AutoModel": "FMViTModel",
                "AutoModelForImageClassification": "FMViTForImageClassification",
                "AutoBackbone": "FMViTBackbone",
                "AutoImageProcessor": "FMViTImageProcessor",
            },
        ),
        Method(
            slug="dualtoken_vit",
            title="DualToken-ViT: Position-aware Efficient Vision Transformer with Dual Token Fusion",
            arxiv="2309.12424",
            kind="model",
            task="image-classification",
            reference="",
            licence="",
            status="ready",
            home="models.dualtoken_vit",
            config="DualTokenViTConfig",
            classes={
                "AutoModel": "DualTokenViTModel",
                "AutoModelForImageClassification": "DualTokenViTForImageClassification",
                "AutoBackbone": "DualTokenViTBackbone",
                "AutoImageProcessor": "DualTokenViTImageProcessor",
            },
        ),
        Method(
            slug="rmt",
            title="RMT: Retentive Networks Meet Vision Transformers",
            arxiv="2309.11523",
            kind="model",
            task="image-classification",
            reference="qhfan/RMT",
            licence="none",
            status="ready",
            home="models.rmt",
            config="RMTConfig",
            classes={
                "AutoModel": "RMTModel",
                "AutoModelForImageClassification": "RMTForImageClassification",
                "AutoBackbone": "RMTBackbone",
                "AutoImageProcessor": "RMTImageProcessor",
            },
        ),
        Method(
            slug="dit_router",
            title="DiT: Efficient Vision Transformers with Dynamic Token Routing",
            arxiv="2308.03409",
            kind="model",
            task="image-classification",
            reference="",
            licence="",
            status="ready",
            home="models.dit_router",
            config="DynamicTokenRoutingConfig",
            classes={
                "AutoModel": "DynamicTokenRoutingModel",
                "AutoModelForImageClassification": "DynamicTokenRoutingForImageClassification",
                "AutoBackbone": "DynamicTokenRoutingBackbone",
                "AutoImageProcessor": "DynamicTokenRoutingImageProcessor",
            },
        ),
        Method(
            slug="dlgsanet",
            title="DLGSANet: Lightweight Dynamic Local and Global Self-Attention Networks for Image Super-Resolution",
            arxiv="2301.02031",
            kind="model",
            task="image-to-image",
            reference="NeonLeexiang/DLGSANet",
            licence="Apache-2.0",
            status="ready",
            home="models.dlgsanet",
            config="DLGSANetConfig",
            classes={
                "AutoModel": "DLGSANetModel",
                "AutoModelForImageToImage": "DLGSANetForImageSuperResolution",
                "AutoImageProcessor": "DLGSANetImageProcessor",
            },
            cannot={
                "attention_implementations": "attention is between channels and rectified: no implementation of softmax attention fits",
            },
        ),
        Method(
            slug="dwformer",
            title="Modular Degradation Simulation and Restoration for Under-Display Camera",
            arxiv="2209.11455",
            kind="model+training",
            task="image-to-image",
            reference="SummerParadise-0922/MPGNet",
            licence="GPL-3.0",
            status="ready",
            home="models.dwformer",
            config="DWFormerConfig",
            classes={
                "AutoModel": "DWFormerForImageRestoration",
                "AutoModelForImageToImage": "DWFormerForImageRestoration",
                "AutoImageProcessor": "DWFormerImageProcessor",
            },
            cannot={
                "attention_implementations": "its attention is a gate for each channel: there are no queries and keys",
            },
        ),
        Method(
            slug="cbnet",
            title="CBNet: A Composite Backbone Network Architecture for Object Detection",
            arxiv="2107.00420",
            kind="model",
            task="object-detection",
            reference="VDIGPKU/CBNetV2",
            licence="LicenseRef-academic-use",
            status="ready",
            home="models.cbnet",
            config="CompositeBackboneConfig",
            classes={"AutoModel": "CompositeBackbone", "AutoBackbone": "CompositeBackbone"},
        ),
        Method(
            slug="slab",
            title="SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch "
            "Normalization",
            arxiv="2405.11582",
            kind="model+surgery",
            task="image-classification",
            reference="xinghaochen/SLAB",
            licence="none",
            status="ready",
            home="models.slab",
            config="SlabConfig",
            classes={
                "AutoModel": "SlabModel",
                "AutoModelForImageClassification": "SlabForImageClassification",
                "AutoBackbone": "SlabBackbone",
                "AutoImageProcessor": "SlabImageProcessor",
            },
            others={
                "SlabLlamaConfig": {"AutoModel": "SlabLlamaModel", "AutoModelForCausalLM": "SlabLlamaForCausalLM"},
            },
        ),
        Method(
            slug="dualformer",
            title="Dualformer: Controllable Fast and Slow Thinking by Learning with Randomized Reasoning Traces",
            arxiv="2410.09918",
            kind="model+training",
            task="path-planning",
            reference="facebookresearch/dualformer",
            licence="CC-BY-NC-4.0",
            status="ready",
            home="models.dualformer",
            config="DualformerConfig",
            classes={
                "AutoModel": "DualformerModel",
                "AutoModelForSeq2SeqLM": "DualformerForConditionalGeneration",
                "AutoTokenizer": "DualformerTokenizer",
            },
        ),
        Method(
            slug="wide_attention",
            title="Wide Attention Is The Way Forward For Transformers?",
            arxiv="2210.00640",
            kind="model",
            task="text-classification",
            reference="google-research/long-range-arena",
            licence="Apache-2.0",
            status="ready",
            home="models.wide_attention",
            config="WideAttentionConfig",
            classes={
                "AutoModel": "WideAttentionModel",
                "AutoModelForSequenceClassification": "WideAttentionForSequenceClassification",
                "AutoModelForNextSentencePrediction": "WideAttentionForSequencePairClassification",
            },
        ),
        Method(
            slug="pre_rmsnorm",
            title="Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers",
            arxiv="2305.14858",
            kind="surgery",
            task="any",
            reference="ZixuanJiang/pre-rmsnorm-transformer",
            licence="MIT",
            status="ready",
            home="surgery.pre_rmsnorm",
            classes={"Recipe": "PreRMSNorm"},
        ),
        Method(
            slug="spt",
            title="SPT: Fine-Tuning Transformer-based Language Models Efficiently with Sparsification",
            arxiv="2312.10365",
            kind="op+adapter",
            task="text-generation",
            reference="ytgui/SPT-proto",
            licence="Apache-2.0",
            status="ready",
            home="surgery.spt",
            classes={"Recipe": "SPT", "TrainerCallback": "SPTCallback"},
        ),
        Method(
            slug="optin",
            title="The Need for Speed: Pruning Transformers with One Recipe",
            arxiv="2403.17921",
            kind="surgery",
            task="text-classification",
            reference="Skhaki18/optin-transformer-pruning",
            licence="MIT",
            status="ready",
            home="surgery.optin",
            classes={"Recipe": "Optin"},
        ),
        Method(
            slug="bct",
            title="Blockwise Compression of Transformer-based Models without Retraining",
            arxiv="2304.01483",
            kind="surgery",
            task="any",
            reference="",
            licence="",
            status="ready",
            home="quantizers.bct",
            classes={"QuantizationConfig": "BCTConfig", "HfQuantizer": "BCTQuantizer"},
            cannot={
                "gradients": "integers have no gradient; dequantize() gives a model that trains",
                "gradient_checkpointing": "integers have no gradient; dequantize() gives a model that trains",
                "distributed": "integers have no gradient; dequantize() gives a model that trains",
                "lora": "integers have no gradient; dequantize() gives a model that takes LoRA",
                "load_in_8bit": "a model has one number format",
            },
        ),
        Method(
            slug="fusegpt",
            title="FuseGPT: Learnable Layers Fusion of Generative Pre-trained Transformers",
            arxiv="2411.14507",
            kind="surgery",
            task="text-generation",
            reference="JarvisPei/FuseGPT",
            licence="MIT",
            status="ready",
            home="surgery.fusegpt",
            classes={"Recipe": "FuseGPT"},
        ),
        Method(
            slug="bytetransformer",
            title="ByteTransformer: A High-Performance Transformer Boosted for Variable-Length Inputs",
            arxiv="2210.03052",
            kind="op+surgery",
            task="feature-extraction",
            reference="bytedance/ByteTransformer",
            licence="Apache-2.0",
            status="ready",
            home="surgery.bytetransformer",
        ),
        Method(
            slug="sttn",
            title="Spatial-Temporal Transformer Networks for Traffic Flow Forecasting",
            arxiv="2001.02908",
            kind="model",
            task="time-series-forecasting",
            reference="xumingxingsjtu/STTN",
            licence="none",
            status="ready",
            home="models.sttn",
            config="STTNConfig",
            classes={"AutoModel": "STTNModel", "AutoModelForTimeSeriesPrediction": "STTNForPrediction"},
        ),
        Method(
            slug="informer",
            title="Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting",
            arxiv="2012.07436",
            kind="model+op",
            task="time-series-forecasting",
            reference="zhouhaoyi/Informer2020",
            licence="Apache-2.0",
            status="ready",
            home="models.informer",
            config="InformerGenerativeConfig",
            classes={
                "AutoModel": "InformerGenerativeModel",
                "AutoModelForTimeSeriesPrediction": "InformerGenerativeForPrediction",
            },
        ),
        Method(
            slug="virtual_nodes",
            title="Virtual Nodes Improve Long-term Traffic Prediction",
            arxiv="2501.10048",
            kind="model",
            task="time-series-forecasting",
            reference="liuxu77/LargeST",
            licence="MIT",
            status="ready",
            home="models.virtual_nodes",
            config="VirtualNodesConfig",
            classes={
                "AutoModel": "VirtualNodeSTGCNModel",
                "AutoModelForTimeSeriesPrediction": "VirtualNodeSTGCNForPrediction",
            },
            cannot={
                "attention_implementations": "a graph convolution network: there is no attention",
            },
        ),
        Method(
            slug="ssa",
            title="The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles",
            arxiv="2306.01705",
            kind="op+training",
            task="any",
            reference="",
            licence="",
            status="ready",
            home="training.ssa",
            classes={"AttentionInterface": "use_ssa", "TrainerCallback": "SSACallback"},
        ),
        Method(
            slug="label_shift_adapter",
            title="Label Shift Adapter for Test-Time Adaptation under Covariate and Label Shifts",
            arxiv="2308.08810",
            kind="adapter+training",
            task="image-classification",
            reference="",
            licence="",
            status="ready",
            home="adapters.label_shift_adapter",
            config="LabelShiftAdapterConfig",
            classes={
                "AutoModelForImageClassification": "LabelShiftAdapterForImageClassification",
                "AutoModelForSequenceClassification": "LabelShiftAdapterForSequenceClassification",
                "AutoModelForAudioClassification": "LabelShiftAdapterForAudioClassification",
            },
        ),
        Method(
            slug="routing_transformer",
            title="Efficient Content-Based Sparse Attention with Routing Transformers",
            arxiv="2003.05997",
            kind="op+model",
            task="text-generation",
            reference="google-research/google-research",
            licence="Apache-2.0",
            status="ready",
            home="models.routing_transformer",
            config="RoutingTransformerConfig",
            classes={"AutoModel": "RoutingTransformerModel", "AutoModelForCausalLM": "RoutingTransformerForCausalLM"},
            cannot={
                "attention_implementations": "scores and values have learned relative terms, which no softmax attention takes",
            },
        ),
        Method(
            slug="tcnca",
            title="TCNCA: Temporal Convolution Network with Chunked Attention for Scalable Sequence Processing",
            arxiv="2312.05605",
            kind="op+model",
            task="text-generation",
            reference="facebookresearch/mega",
            licence="MIT",
            status="ready",
            home="models.tcnca",
            config="TCNCAConfig",
            classes={
                "AutoModel": "TCNCAModel",
                "AutoModelForCausalLM": "TCNCAForCausalLM",
                "AutoModelForSequenceClassification": "TCNCAForSequenceClassification",
            },
        ),
        Method(
            slug="dynn",
            title="Dynamic Neural Network is All You Need: Understanding the Robustness of Dynamic Mechanisms in Neural Networks",
            arxiv="2308.08709",
            kind="model+training",
            task="image-classification",
            reference="Sanghyun-Hong/DeepSloth",
            licence="MIT",
            status="ready",
            home="models.dynn",
            config="MultiExitConfig",
            classes={
                "AutoModelForImageClassification": "MultiExitForImageClassification",
                "AutoImageProcessor": "MultiExitImageProcessor",
            },
            others={
                "MultiExitTextConfig": {"AutoModelForSequenceClassification": "MultiExitForSequenceClassification"},
            },
        ),
        Method(
            slug="survey_inference",
            title="A Survey of Techniques for Optimizing Transformer Inference",
            arxiv="2307.07982",
            kind="catalogue",
            task="techniques",
            reference="",
            licence="",
            status="ready",
            home="techniques.survey_inference",
        ),
        Method(
            slug="survey_faster_lighter",
            title="A Practical Survey on Faster and Lighter Transformers",
            arxiv="2103.14636",
            kind="catalogue",
            task="techniques",
            reference="",
            licence="",
            status="ready",
            home="techniques.survey_faster_lighter",
        ),
        Method(
            slug="survey_applications",
            title="A Comprehensive Survey on Applications of Transformers for Deep Learning Tasks",
            arxiv="2306.07303",
            kind="catalogue",
            task="techniques",
            reference="",
            licence="",
            status="ready",
            home="techniques.survey_applications",
        ),
    )
}

# All 83 in the project's order. A bare slug is worked out above; a row is the first seven fields of a planned `Method`.
# fmt: off
TABLE: tuple[str | tuple[str, str, str, str, str, str, str], ...] = (
    ("gfmdiff", "Geometric-Facilitated Denoising Diffusion Model for 3D Molecule Generation",
     "2401.02683", "diffusion", "graph-ml", "LEOXC1571/GFMDiff", "MIT"),
    "sttn",
    ("todyformer", "Todyformer: Towards Holistic Dynamic Graph Transformers with Structure-Aware Tokenization",
     "2402.05944", "model", "graph-ml", "", ""),
    ("transformer_tts", "Neural Speech Synthesis with Transformer Network",
     "1809.08895", "model", "text-to-audio", "espnet/espnet", "Apache-2.0"),
    "survey_inference",
    ("dt_ddnn", "Over-The-Air Double-Threshold Deep Learner for Jamming Detection in 5G RF domain",
     "2403.02645", "model", "signal-classification", "", ""),
    "gpht",
    ("flow_transformer", "FlowTransformer: "
     "A Transformer Framework for Flow-based Network Intrusion Detection Systems",
     "2304.14746", "model", "tabular-classification", "liamdm/FlowTransformer", "AGPL-3.0"),
    ("mt3", "Next Generation Multitarget Trackers: Random Finite Set Methods vs Transformer-based Deep Learning",
     "2104.00734", "model", "object-tracking", "JulianoLagana/MT3", "MIT"),
    "rmt",
    "survey_applications",
    ("nat", "Neighborhood-aware Scalable Temporal Network Representation Learning",
     "2209.01084", "model", "graph-ml", "Graph-COM/Neighborhood-Aware-Temporal-Network", "MIT"),
    "dualformer",
    "itransformer",
    "cbnet",
    ("pres", "PRES: Toward Scalable Memory-Based Dynamic Graph Neural Networks",
     "2402.04284", "model+training", "graph-ml", "jwsu825/MDGNN_BS", "none"),
    ("driver_video_swin", "Applying Spatiotemporal Attention to Identify Distracted "
     "and Drowsy Driving with Vision Transformers",
     "2207.12148", "model", "video-classification", "SwinTransformer/Video-Swin-Transformer", "Apache-2.0"),
    ("mossformer", "MossFormer: Pushing the Performance Limit of Monaural Speech Separation using Gated "
     "Single-Head Transformer with Convolution-Augmented Joint Self-Attentions",
     "2302.11824", "model", "audio-to-audio", "modelscope/modelscope", "Apache-2.0"),
    "pixart_delta",
    "hat",
    ("vdt", "VDT: General-purpose Video Diffusion Transformers via Mask Modeling",
     "2305.13311", "diffusion", "video-to-video", "RERV/VDT", "CC-BY-NC-4.0"),
    ("relactrl", "RelaCtrl: Relevance-Guided Efficient Control for Diffusion Transformers",
     "2502.14377", "diffusion+adapter", "text-to-image", "360CVGroup/RelaCtrl", "none"),
    "flashrnn",
    ("dtrn", "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation",
     "2308.05996", "model", "tabular-classification", "", ""),
    ("easycontrol", "EasyControl: Adding Efficient and Flexible Control for Diffusion Transformer",
     "2503.07027", "diffusion+adapter", "text-to-image", "Xiaojiu-z/EasyControl", "Apache-2.0"),
    "gla",
    "bytetransformer",
    "dlgsanet",
    "ssa",
    "virtual_nodes",
    "fmvit",
    ("rt_detr", "DETRs Beat YOLOs on Real-time Object Detection",
     "2304.08069", "model", "object-detection", "lyuwenyu/RT-DETR", "Apache-2.0"),
    "slab",
    "aaren",
    ("group_detr", "Group DETR: Fast DETR Training with Group-Wise One-to-Many Assignment",
     "2207.13085", "training", "object-detection", "Atten4Vis/ConditionalDETR", "Apache-2.0"),
    "spt",
    "bct",
    "nextvit",
    "dit_router",
    ("ted_viton", "TED-VITON: Transformer-Empowered Diffusion Models for Virtual Try-On",
     "2411.17017", "diffusion+adapter", "image-to-image", "", ""),
    "survey_faster_lighter",
    ("spectral_graph_lstm", "Forecasting Trajectory and Behavior of Road-Agents "
     "Using Spectral Clustering in Graph-LSTMs",
     "1912.01118", "model", "trajectory-prediction",
     "rohanchandra30/Spectral-Trajectory-and-Behavior-Prediction", "none"),
    "crossvit",
    ("dimr", "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models",
     "2406.09416", "diffusion", "unconditional-image-generation", "qihao067/DiMR", "Apache-2.0"),
    "wide_attention",
    ("netmamba", "NetMamba: Efficient Network Traffic Classification via Pre-training Unidirectional Mamba",
     "2405.11449", "model", "traffic-classification", "wangtz19/NetMamba", "none"),
    ("netfound", "netFound: Foundation Model for Network Security",
     "2310.17025", "model", "traffic-classification", "SNL-UCSB/netFound", "MIT"),
    ("motformer3d", "3DMOTFormer: Graph Transformer for Online 3D Multi-Object Tracking",
     "2308.06635", "model", "object-tracking", "dsx0511/3DMOTFormer", "MIT"),
    "deltanet",
    ("ts_lstm", "TS-LSTM and Temporal-Inception: Exploiting Spatiotemporal Dynamics for Activity Recognition",
     "1703.10667", "model", "video-classification", "chihyaoma/Activity-Recognition-with-CNN-and-RNN", "none"),
    ("relation_detr", "Relation DETR: Exploring Explicit Position Relation Prior for Object Detection",
     "2407.11699", "model+training", "object-detection", "xiuqhou/Relation-DETR", "Apache-2.0"),
    "lmuformer",
    "pre_rmsnorm",
    "efficientformer",
    ("dtr", "Denoising Task Routing for Diffusion Models",
     "2310.07138", "diffusion+training", "unconditional-image-generation", "byeongjun-park/DTR", "MIT"),
    ("flatformer", "FlatFormer: Flattened Window Attention for Efficient Point Cloud Transformer",
     "2301.08739", "op+model", "object-detection", "mit-han-lab/flatformer", "none"),
    ("mpnn_vn", "On the Connection Between MPNN and Graph Transformer",
     "2301.11956", "model", "graph-ml", "Chen-Cai-OSU/MPNN-GT-Connection", "none"),
    ("daformer", "DAFormer: "
     "Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic Segmentation",
     "2111.14887", "model+training", "image-segmentation", "lhoyer/DAFormer", "Apache-2.0"),
    "t2t_vit",
    ("efficient_tdnn", "EfficientTDNN: Efficient Architecture Search for Speaker Recognition",
     "2103.13581", "model+training", "audio-classification", "mechanicalsea/sugar", "MIT"),
    "fusegpt",
    ("pt_dit", "Qihoo-T2X: An Efficient Proxy-Tokenized Diffusion Transformer for Text-to-Any-Task",
     "2409.04005", "diffusion", "text-to-image", "Ascend/MindSpeed-MM", "Apache-2.0"),
    "label_shift_adapter",
    ("dit3d", "DiT-3D: Exploring Plain Diffusion Transformers for 3D Shape Generation",
     "2307.01831", "diffusion", "point-cloud-generation", "DiT-3D/DiT-3D", "Apache-2.0"),
    ("att_swin_unet", "Attention Swin U-Net: Cross-Contextual Attention Mechanism for Skin Lesion Segmentation",
     "2210.16898", "model", "image-segmentation", "NITR098/AttSwinUNet", "none"),
    ("singlepath", "Challenging the Need for Packet Spraying in Large-Scale Distributed Training",
     "2407.00550", "system", "distributed-training", "", ""),
    "optin",
    ("fretna", "Faster Re-translation Using Non-Autoregressive Model For Simultaneous Neural Machine Translation",
     "2012.14681", "model", "translation", "facebookresearch/fairseq", "MIT"),
    ("deftan2", "DeFTAN-II: Efficient Multichannel Speech Enhancement with Subgroup Processing",
     "2308.15777", "model", "audio-to-audio", "donghoney0416/DeFTAN-II", "none"),
    "routing_transformer",
    ("transdae", "TransDAE: "
     "Dual Attention Mechanism in a Hierarchical Transformer for Efficient Medical Image Segmentation",
     "2409.02018", "model", "image-segmentation", "mindflow-institue/DAEFormer", "MIT"),
    "dynn",
    "dualtoken_vit",
    "tpgn",
    ("nn_jit_web", "Accelerating In-Browser Deep Learning Inference on Diverse Edge "
     "Clients through Just-in-Time Kernel Optimizations",
     "2309.08978", "system", "export", "", ""),
    "informer",
    ("stateful_conformer", "Stateful Conformer with Cache-based Inference for Streaming Automatic Speech Recognition",
     "2312.17279", "model", "automatic-speech-recognition", "NVIDIA/NeMo", "Apache-2.0"),
    ("pdvn", "Retrosynthetic Planning with Dual Value Networks",
     "", "model+training", "retrosynthesis", "DiXue98/PDVN", "none"),
    "dwformer",
    "tcnca",
    "llm_drop",
    ("swtr_unet", "Joint Liver and Hepatic Lesion Segmentation in MRI using a Hybrid CNN with Transformer Layers",
     "2201.10981", "model", "image-segmentation", "", ""),
    ("a_sdm", "A-SDM: Accelerating Stable Diffusion through Model Assembly and Feature Inheritance Strategies",
     "2406.00210", "surgery+adapter", "text-to-image", "", ""),
)
# fmt: on

METHODS: dict[str, Method] = {
    method.slug: method for method in (WORKED_OUT[row] if isinstance(row, str) else Method(*row) for row in TABLE)
}
