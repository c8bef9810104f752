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
    cannot: dict[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.status == "ready"

    def load(self, name: str) -> Any:
        """The class or function `name` of this method."""
        return getattr(import_module(f"hf_ext.{self.home}"), name)

    def config_class(self) -> type | None:
        return self.load(self.config) if self.config else None

    def model_classes(self) -> list[type]:
        """The model classes that this method brings, the base model first."""
        names = (name for auto, name in self.classes.items() if auto.startswith("AutoModel") or auto == "ModelMixin")
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
    )
}

# All 83 in the project's order. A bare slug is worked out above; a row is the first seven fields of a planned `Method`.
# fmt: off
TABLE: tuple[str | tuple[str, str, str, str, str, str, str], ...] = (
    ("gfmdiff", "Geometric-Facilitated Denoising Diffusion Model for 3D Molecule Generation",
     "2401.02683", "diffusion", "graph-ml", "LEOXC1571/GFMDiff", "MIT"),
    ("sttn", "Spatial-Temporal Transformer Networks for Traffic Flow Forecasting",
     "2001.02908", "model", "time-series-forecasting", "xumingxingsjtu/STTN", "none"),
    ("todyformer", "Todyformer: Towards Holistic Dynamic Graph Transformers with Structure-Aware Tokenization",
     "2402.05944", "model", "graph-ml", "", ""),
    ("transformer_tts", "Neural Speech Synthesis with Transformer Network",
     "1809.08895", "model", "text-to-audio", "espnet/espnet", "Apache-2.0"),
    ("survey_inference", "A Survey of Techniques for Optimizing Transformer Inference",
     "2307.07982", "catalogue", "techniques", "", ""),
    ("dt_ddnn", "Over-The-Air Double-Threshold Deep Learner for Jamming Detection in 5G RF domain",
     "2403.02645", "model", "signal-classification", "", ""),
    ("gpht", "Generative Pretrained Hierarchical Transformer for Time Series Forecasting",
     "2402.16516", "model", "time-series-forecasting", "icantnamemyself/GPHT", "MIT"),
    ("flow_transformer", "FlowTransformer: "
     "A Transformer Framework for Flow-based Network Intrusion Detection Systems",
     "2304.14746", "model", "tabular-classification", "liamdm/FlowTransformer", "AGPL-3.0"),
    ("mt3", "Next Generation Multitarget Trackers: Random Finite Set Methods vs Transformer-based Deep Learning",
     "2104.00734", "model", "object-tracking", "JulianoLagana/MT3", "MIT"),
    "rmt",
    ("survey_applications", "A Comprehensive Survey on Applications of Transformers for Deep Learning Tasks",
     "2306.07303", "catalogue", "techniques", "", ""),
    ("nat", "Neighborhood-aware Scalable Temporal Network Representation Learning",
     "2209.01084", "model", "graph-ml", "Graph-COM/Neighborhood-Aware-Temporal-Network", "MIT"),
    ("dualformer", "Dualformer: Controllable Fast and Slow Thinking by Learning with Randomized Reasoning Traces",
     "2410.09918", "model+training", "text-generation", "facebookresearch/dualformer", "CC-BY-NC-4.0"),
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
    ("flashrnn", "FlashRNN: Optimizing Traditional RNNs on Modern Hardware",
     "2412.07752", "op+model", "text-generation", "NX-AI/flashrnn", "LicenseRef-NXAI-Community"),
    ("dtrn", "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation",
     "2308.05996", "model", "tabular-classification", "", ""),
    ("easycontrol", "EasyControl: Adding Efficient and Flexible Control for Diffusion Transformer",
     "2503.07027", "diffusion+adapter", "text-to-image", "Xiaojiu-z/EasyControl", "Apache-2.0"),
    "gla",
    ("bytetransformer", "ByteTransformer: A High-Performance Transformer Boosted for Variable-Length Inputs",
     "2210.03052", "op+surgery", "feature-extraction", "bytedance/ByteTransformer", "Apache-2.0"),
    "dlgsanet",
    ("ssa", "The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles",
     "2306.01705", "op+training", "any", "", ""),
    ("virtual_nodes", "Virtual Nodes Improve Long-term Traffic Prediction",
     "2501.10048", "model", "time-series-forecasting", "liuxu77/LargeST", "MIT"),
    "fmvit",
    ("rt_detr", "DETRs Beat YOLOs on Real-time Object Detection",
     "2304.08069", "model", "object-detection", "lyuwenyu/RT-DETR", "Apache-2.0"),
    ("slab", "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive "
     "Re-parameterized Batch Normalization",
     "2405.11582", "model+surgery", "image-classification", "xinghaochen/SLAB", "none"),
    ("aaren", "Attention as an RNN",
     "2405.13956", "op+model", "time-series-forecasting", "", ""),
    ("group_detr", "Group DETR: Fast DETR Training with Group-Wise One-to-Many Assignment",
     "2207.13085", "training", "object-detection", "Atten4Vis/ConditionalDETR", "Apache-2.0"),
    ("spt", "SPT: Fine-Tuning Transformer-based Language Models Efficiently with Sparsification",
     "2312.10365", "op+adapter", "text-generation", "ytgui/SPT-proto", "Apache-2.0"),
    ("bct", "Blockwise Compression of Transformer-based Models without Retraining",
     "2304.01483", "surgery", "any", "", ""),
    "nextvit",
    "dit_router",
    ("ted_viton", "TED-VITON: Transformer-Empowered Diffusion Models for Virtual Try-On",
     "2411.17017", "diffusion+adapter", "image-to-image", "", ""),
    ("survey_faster_lighter", "A Practical Survey on Faster and Lighter Transformers",
     "2103.14636", "catalogue", "techniques", "", ""),
    ("spectral_graph_lstm", "Forecasting Trajectory and Behavior of Road-Agents "
     "Using Spectral Clustering in Graph-LSTMs",
     "1912.01118", "model", "trajectory-prediction",
     "rohanchandra30/Spectral-Trajectory-and-Behavior-Prediction", "none"),
    "crossvit",
    ("dimr", "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models",
     "2406.09416", "diffusion", "unconditional-image-generation", "qihao067/DiMR", "Apache-2.0"),
    ("wide_attention", "Wide Attention Is The Way Forward For Transformers?",
     "2210.00640", "model+training", "text-classification", "google-research/long-range-arena", "Apache-2.0"),
    ("netmamba", "NetMamba: Efficient Network Traffic Classification via Pre-training Unidirectional Mamba",
     "2405.11449", "model", "traffic-classification", "wangtz19/NetMamba", "none"),
    ("netfound", "netFound: Foundation Model for Network Security",
     "2310.17025", "model", "traffic-classification", "SNL-UCSB/netFound", "MIT"),
    ("motformer3d", "3DMOTFormer: Graph Transformer for Online 3D Multi-Object Tracking",
     "2308.06635", "model", "object-tracking", "dsx0511/3DMOTFormer", "MIT"),
    ("deltanet", "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues",
     "2411.12537", "op+model", "text-generation", "fla-org/flash-linear-attention", "MIT"),
    ("ts_lstm", "TS-LSTM and Temporal-Inception: Exploiting Spatiotemporal Dynamics for Activity Recognition",
     "1703.10667", "model", "video-classification", "chihyaoma/Activity-Recognition-with-CNN-and-RNN", "none"),
    ("relation_detr", "Relation DETR: Exploring Explicit Position Relation Prior for Object Detection",
     "2407.11699", "model+training", "object-detection", "xiuqhou/Relation-DETR", "Apache-2.0"),
    ("lmuformer", "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units",
     "2402.04882", "model", "audio-classification", "zeyuliu1037/LMUFormer", "MIT"),
    ("pre_rmsnorm", "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers",
     "2305.14858", "surgery", "any", "ZixuanJiang/pre-rmsnorm-transformer", "MIT"),
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
    ("fusegpt", "FuseGPT: Learnable Layers Fusion of Generative Pre-trained Transformers",
     "2411.14507", "surgery", "text-generation", "JarvisPei/FuseGPT", "MIT"),
    ("pt_dit", "Qihoo-T2X: An Efficient Proxy-Tokenized Diffusion Transformer for Text-to-Any-Task",
     "2409.04005", "diffusion", "text-to-image", "Ascend/MindSpeed-MM", "Apache-2.0"),
    ("label_shift_adapter", "Label Shift Adapter for Test-Time Adaptation under Covariate and Label Shifts",
     "2308.08810", "adapter+training", "image-classification", "", ""),
    ("dit3d", "DiT-3D: Exploring Plain Diffusion Transformers for 3D Shape Generation",
     "2307.01831", "diffusion", "point-cloud-generation", "DiT-3D/DiT-3D", "Apache-2.0"),
    ("att_swin_unet", "Attention Swin U-Net: Cross-Contextual Attention Mechanism for Skin Lesion Segmentation",
     "2210.16898", "model", "image-segmentation", "NITR098/AttSwinUNet", "none"),
    ("singlepath", "Challenging the Need for Packet Spraying in Large-Scale Distributed Training",
     "2407.00550", "system", "distributed-training", "", ""),
    ("optin", "The Need for Speed: Pruning Transformers with One Recipe",
     "2403.17921", "surgery", "text-classification", "Skhaki18/optin-transformer-pruning", "MIT"),
    ("fretna", "Faster Re-translation Using Non-Autoregressive Model For Simultaneous Neural Machine Translation",
     "2012.14681", "model", "translation", "facebookresearch/fairseq", "MIT"),
    ("deftan2", "DeFTAN-II: Efficient Multichannel Speech Enhancement with Subgroup Processing",
     "2308.15777", "model", "audio-to-audio", "donghoney0416/DeFTAN-II", "none"),
    ("routing_transformer", "Efficient Content-Based Sparse Attention with Routing Transformers",
     "2003.05997", "op+model", "text-generation", "google-research/google-research", "Apache-2.0"),
    ("transdae", "TransDAE: "
     "Dual Attention Mechanism in a Hierarchical Transformer for Efficient Medical Image Segmentation",
     "2409.02018", "model", "image-segmentation", "mindflow-institue/DAEFormer", "MIT"),
    ("dynn", "Dynamic Neural Network is All You Need: "
     "Understanding the Robustness of Dynamic Mechanisms in Neural Networks",
     "2308.08709", "model+training", "image-classification", "Sanghyun-Hong/DeepSloth", "MIT"),
    "dualtoken_vit",
    ("tpgn", "PGN: The RNN's New Successor is Effective for Long-Range Time Series Forecasting",
     "2409.17703", "op+model", "time-series-forecasting", "Water2sea/TPGN", "none"),
    ("nn_jit_web", "Accelerating In-Browser Deep Learning Inference on Diverse Edge "
     "Clients through Just-in-Time Kernel Optimizations",
     "2309.08978", "system", "export", "", ""),
    ("informer", "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting",
     "2012.07436", "model", "time-series-forecasting", "zhouhaoyi/Informer2020", "Apache-2.0"),
    ("stateful_conformer", "Stateful Conformer with Cache-based Inference for Streaming Automatic Speech Recognition",
     "2312.17279", "model", "automatic-speech-recognition", "NVIDIA/NeMo", "Apache-2.0"),
    ("pdvn", "Retrosynthetic Planning with Dual Value Networks",
     "", "model+training", "retrosynthesis", "DiXue98/PDVN", "none"),
    "dwformer",
    ("tcnca", "TCNCA: Temporal Convolution Network with Chunked Attention for Scalable Sequence Processing",
     "2312.05605", "op+model", "text-generation", "facebookresearch/mega", "MIT"),
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
