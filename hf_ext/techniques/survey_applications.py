"""Which model for which task: five domains (arXiv 2306.07303).

A program builds a small model of the class and calls it once on made-up input of the right kind. Where no ready method is made for a field
(wireless networks, network traffic, speech separation, medical signals), a general model of Transformers stands in for it, and says so.
"""

from __future__ import annotations

from . import Entry

LEAVES = {
    "nlp": (
        "translation",
        "text_classification",
        "token_classification",
        "question_answering",
        "summarization",
        "text_generation",
        "language_reasoning",
        "symbolic_reasoning",
    ),
    "vision": (
        "image_classification",
        "segmentation",
        "recognition_feature_extraction",
        "super_resolution_reconstruction",
        "image_generation",
        "object_detection",
    ),
    "multimodal": (
        "visual_question_answering",
        "classification_segmentation",
        "captioning",
        "commonsense_reasoning",
        "text_to_image",
        "text_to_video",
        "text_to_speech",
        "document_understanding",
        "resource_allocation",
    ),
    "audio_speech": ("speech_recognition", "speech_separation", "audio_classification", "speaker_recognition"),
    "signal": ("wireless_network", "network_traffic", "medical_signal", "time_series", "traffic_forecasting"),
}

# leaf -> entries of the other tables
SHARED = {
    "nlp/text_classification": ("distilbert", "albert", "linformer_model", "optin_heads"),
    "nlp/text_generation": ("gla", "deltanet", "flashrnn", "routing_transformer", "attention_dropping", "layer_fusion"),
    "nlp/language_reasoning": ("dualformer",),
    "nlp/symbolic_reasoning": ("dualformer",),
    "vision/image_classification": ("efficientformer", "nextvit", "rmt", "slab", "token_routing", "mobilevit", "dynn"),
    "vision/recognition_feature_extraction": ("dit_router",),
    "multimodal/text_to_image": ("pt_dit",),
    "audio_speech/speaker_recognition": ("efficient_tdnn",),
    "signal/time_series": ("aaren",),
}


def planned(slug: str, leaf: str, title: str, application: str, task: str) -> Entry:
    """A method of hf_ext that this survey's field waits for; its id is its slug."""
    return Entry(
        id=slug,
        leaf=leaf,
        title=title,
        provider="hf_ext",
        target=slug,
        stage="design",
        application=application,
        task=task,
    )


ENTRIES = (
    # -- natural language ---------------------------------------------------------------------------------------------
    Entry(
        id="marian",
        leaf="nlp/translation",
        title="MarianMT; also M2M-100, mBART, T5 (AutoModelForSeq2SeqLM with generate: the pipeline is gone)",
        provider="transformers",
        target="transformers.MarianMTModel",
        stage="design",
        application="text",
        task="translation",
        snippet="""
            from transformers import MarianConfig, MarianMTModel

            sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4)
            ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, forced_eos_token_id=2, decoder_start_token_id=0)
            model = MarianMTModel(MarianConfig(vocab_size=100, encoder_ffn_dim=64, decoder_ffn_dim=64, **sizes, **ids)).eval()
            translation = model.generate(torch.randint(3, 100, (2, 12)), max_new_tokens=8, num_beams=2)
        """,
        check="translation.shape[0] == 2 and translation.shape[1] <= 9",
        examples=("Helsinki-NLP/opus-mt-en-de",),
    ),
    planned("fretna", "nlp/translation", "Re-translation without autoregression (2020)", "text", "translation"),
    Entry(
        id="bert",
        leaf="nlp/text_classification",
        title="BERT; also RoBERTa, XLNet, DeBERTa (AutoModelForSequenceClassification)",
        provider="transformers",
        target="transformers.BertForSequenceClassification",
        stage="design",
        application="text",
        task="text-classification",
        model="bert",
        snippet="""
            loss, logits = model(**inputs, labels=labels)[:2]
        """,
        check="logits.shape == (2, 2) and loss.isfinite()",
        examples=("google-bert/bert-base-uncased",),
    ),
    Entry(
        id="named_entities",
        leaf="nlp/token_classification",
        title="A label for each token: entities, segments (AutoModelForTokenClassification)",
        provider="transformers",
        target="transformers.BertForTokenClassification",
        stage="design",
        application="text",
        task="token-classification",
        snippet="""
            from transformers import BertConfig, BertForTokenClassification

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
            model = BertForTokenClassification(BertConfig(vocab_size=100, num_labels=5, **sizes)).eval()
            logits = model(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.shape == (2, 16, 5)",
        examples=("dslim/bert-base-NER",),
    ),
    Entry(
        id="extractive_answers",
        leaf="nlp/question_answering",
        title="Where an answer starts and ends (AutoModelForQuestionAnswering; the pipeline is gone)",
        provider="transformers",
        target="transformers.AlbertForQuestionAnswering",
        stage="design",
        application="text",
        task="question-answering",
        snippet="""
            from transformers import AlbertConfig, AlbertForQuestionAnswering

            sizes = dict(embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
            output = AlbertForQuestionAnswering(AlbertConfig(vocab_size=100, **sizes)).eval()(torch.randint(3, 100, (2, 24)))
            answer = output.start_logits.argmax(-1), output.end_logits.argmax(-1)
        """,
        check="output.start_logits.shape == output.end_logits.shape == (2, 24)",
        examples=("deepset/roberta-base-squad2",),
    ),
    Entry(
        id="bart",
        leaf="nlp/summarization",
        title="BART; also PEGASUS, LED for long texts (generate: the pipeline is gone)",
        provider="transformers",
        target="transformers.BartForConditionalGeneration",
        stage="design",
        application="text",
        task="summarization",
        snippet="""
            from transformers import BartConfig, BartForConditionalGeneration

            sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4)
            ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, forced_eos_token_id=2, decoder_start_token_id=2)
            config = BartConfig(vocab_size=100, encoder_ffn_dim=64, decoder_ffn_dim=64, **sizes, **ids)
            summary = BartForConditionalGeneration(config).eval().generate(torch.randint(3, 100, (2, 40)), max_new_tokens=8)
        """,
        check="summary.shape[0] == 2 and summary.shape[1] <= 9",
        examples=("facebook/bart-large-cnn",),
    ),
    Entry(
        id="llama",
        leaf="nlp/text_generation",
        title="Llama; also GPT-2, Mistral, CTRL (AutoModelForCausalLM)",
        provider="transformers",
        target="transformers.LlamaForCausalLM",
        stage="design",
        application="text",
        task="text-generation",
        model="llama",
        snippet="""
            tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        """,
        check="16 < tokens.shape[1] <= 24",
        examples=("openai-community/gpt2",),
    ),
    Entry(
        id="multiple_choice",
        leaf="nlp/language_reasoning",
        title="Which of the endings? RoBERTa, DeBERTa (AutoModelForMultipleChoice)",
        provider="transformers",
        target="transformers.RobertaForMultipleChoice",
        stage="design",
        application="text",
        task="multiple-choice",
        snippet="""
            from transformers import RobertaConfig, RobertaForMultipleChoice

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_position_embeddings=40)
            model = RobertaForMultipleChoice(RobertaConfig(vocab_size=100, pad_token_id=1, **sizes)).eval()
            logits = model(torch.randint(3, 100, (2, 4, 16))).logits    # two questions of four answers
        """,
        check="logits.shape == (2, 4)",
    ),
    Entry(
        id="sums_as_text",
        leaf="nlp/symbolic_reasoning",
        title="Arithmetic as translation of bytes, by T5",
        provider="transformers",
        target="transformers.T5ForConditionalGeneration",
        stage="design",
        application="text",
        task="text2text-generation",
        snippet="""
            from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration

            tokenizer = ByT5Tokenizer(extra_ids=0)
            sizes = dict(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
            model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes))
            question, answer = tokenizer(["12+30", "7+8  "], return_tensors="pt"), tokenizer(["42", "15"], return_tensors="pt")
            loss = model(**question, labels=answer["input_ids"]).loss
        """,
        check="loss.isfinite()",
    ),
    planned(
        "pdvn",
        "nlp/symbolic_reasoning",
        "Planning of syntheses with two value networks (PDVN, 2023)",
        "any",
        "retrosynthesis",
    ),
    # -- vision -------------------------------------------------------------------------------------------------------
    Entry(
        id="vit",
        leaf="vision/image_classification",
        title="ViT; also DeiT, Swin, ConvNeXt (AutoModelForImageClassification)",
        provider="transformers",
        target="transformers.ViTForImageClassification",
        stage="design",
        application="vision",
        task="image-classification",
        model="vit",
        snippet="""
            logits = model(**inputs).logits
        """,
        check="logits.shape == (2, 2)",
        examples=("google/vit-base-patch16-224",),
    ),
    Entry(
        id="crossvit",
        leaf="vision/image_classification",
        title="Patches of two sizes that read each other (CrossViT, 2021)",
        provider="hf_ext",
        target="crossvit",
        stage="design",
        application="vision",
        task="image-classification",
        snippet="""
            from hf_ext.models.crossvit import CrossVitConfig, CrossVitForImageClassification

            sizes = dict(image_sizes=[24, 16], patch_sizes=[6, 8], hidden_sizes=[16, 32], num_attention_heads=[2, 4], mlp_ratios=[2, 2])
            model = CrossVitForImageClassification(CrossVitConfig(depths=[[1, 2, 0], [1, 1, 2]], **sizes)).eval()
            logits = model(torch.rand(2, 3, 24, 24)).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="t2t_vit",
        leaf="vision/image_classification",
        title="Tokens that gather their neighbours (T2T-ViT, 2021)",
        provider="hf_ext",
        target="t2t_vit",
        stage="design",
        application="vision",
        task="image-classification",
        snippet="""
            from hf_ext.models.t2t_vit import T2TViTConfig, T2TViTForImageClassification

            sizes = dict(token_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
            logits = T2TViTForImageClassification(T2TViTConfig(image_size=64, **sizes)).eval()(torch.rand(2, 3, 64, 64)).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="fmvit",
        leaf="vision/image_classification",
        title="Mixing high and low frequencies (FMViT, 2023)",
        provider="hf_ext",
        target="fmvit",
        stage="design",
        application="vision",
        task="image-classification",
        snippet="""
            from hf_ext.models.fmvit import FMViTConfig, FMViTForImageClassification

            sizes = dict(stem_sizes=[8, 8, 16], hidden_sizes=[16, 32, 32, 32], out_sizes=[16, 64, 64, 64], depths=[1, 2, 2, 1])
            model = FMViTForImageClassification(FMViTConfig(head_dim=16, mix_block_ratio=0.5, **sizes)).eval()
            logits = model(torch.rand(2, 3, 64, 64)).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="dualtoken_vit",
        leaf="vision/image_classification",
        title="Local and global tokens, fused (DualToken-ViT, 2023)",
        provider="hf_ext",
        target="dualtoken_vit",
        stage="design",
        application="vision",
        task="image-classification",
        snippet="""
            from hf_ext.models.dualtoken_vit import DualTokenViTConfig, DualTokenViTForImageClassification

            sizes = dict(hidden_sizes=[8, 16, 24], depths=[1, 2, 1], num_attention_heads=[2, 2, 3], mlp_ratios=[2, 2, 2])
            model = DualTokenViTForImageClassification(DualTokenViTConfig(conv_kernel_size=3, global_grid=3, neck_dim=32, **sizes)).eval()
            logits = model(torch.rand(2, 3, 72, 72)).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="segformer",
        leaf="vision/segmentation",
        title="SegFormer; also UPerNet, Mask2Former, SAM (AutoModelForSemanticSegmentation)",
        provider="transformers",
        target="transformers.SegformerForSemanticSegmentation",
        stage="design",
        application="vision",
        task="image-segmentation",
        snippet="""
            from transformers import SegformerConfig, SegformerForSemanticSegmentation

            sizes = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16)
            model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **sizes)).eval()
            logits = model(torch.rand(2, 3, 64, 64)).logits
        """,
        check="logits.shape == (2, 5, 16, 16)",
        examples=("nvidia/segformer-b0-finetuned-ade-512-512",),
    ),
    planned(
        "daformer",
        "vision/segmentation",
        "Segmentation across domains (DAFormer, 2022)",
        "vision",
        "image-segmentation",
    ),
    planned(
        "att_swin_unet",
        "vision/segmentation",
        "Skin lesions (Attention Swin U-Net, 2022)",
        "vision",
        "image-segmentation",
    ),
    planned(
        "transdae",
        "vision/segmentation",
        "Organs, by two kinds of attention (TransDAE, 2024)",
        "vision",
        "image-segmentation",
    ),
    planned(
        "swtr_unet", "vision/segmentation", "Liver lesions in MRI (SWTR-Unet, 2022)", "vision", "image-segmentation"
    ),
    Entry(
        id="backbone",
        leaf="vision/recognition_feature_extraction",
        title="Feature maps of any stage: DINOv2, BEiT, Swin (AutoBackbone)",
        provider="transformers",
        target="transformers.AutoBackbone",
        stage="design",
        application="vision",
        task="image-feature-extraction",
        snippet="""
            from transformers import AutoBackbone, SwinConfig

            sizes = dict(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
            config = SwinConfig(out_features=["stage1", "stage2"], **sizes)
            maps = AutoBackbone.from_config(config).eval()(torch.rand(2, 3, 64, 64)).feature_maps
        """,
        check="[m.shape[-1] for m in maps] == [16, 8]",
        examples=("facebook/dinov2-base",),
    ),
    Entry(
        id="cbnet",
        leaf="vision/recognition_feature_extraction",
        title="Two backbones, of which one assists the other (CBNetV2, 2021)",
        provider="hf_ext",
        target="cbnet",
        stage="design",
        application="vision",
        task="image-feature-extraction",
        snippet="""
            from hf_ext.models.cbnet import CompositeBackbone, CompositeBackboneConfig

            backbone = {"model_type": "swin", "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 4}
            maps = CompositeBackbone(CompositeBackboneConfig(backbone_config=backbone)).eval()(torch.rand(2, 3, 64, 64)).feature_maps
        """,
        check="len(maps) >= 1 and all(m.isfinite().all() for m in maps)",
    ),
    Entry(
        id="swin2sr",
        leaf="vision/super_resolution_reconstruction",
        title="Swin2SR (AutoModelForImageToImage)",
        provider="transformers",
        target="transformers.Swin2SRForImageSuperResolution",
        stage="design",
        application="vision",
        task="image-to-image",
        snippet="""
            from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

            config = Swin2SRConfig(image_size=16, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, upscale=2)
            picture = Swin2SRForImageSuperResolution(config).eval()(torch.rand(1, 3, 16, 16)).reconstruction
        """,
        check="picture.shape == (1, 3, 32, 32)",
        examples=("caidas/swin2SR-classical-sr-x2-64",),
    ),
    Entry(
        id="hat",
        leaf="vision/super_resolution_reconstruction",
        title="Channel attention beside windows that overlap (HAT, 2023)",
        provider="hf_ext",
        target="hat",
        stage="design",
        application="vision",
        task="image-to-image",
        snippet="""
            from hf_ext.models.hat import HatConfig, HatForImageSuperResolution

            sizes = dict(image_size=16, hidden_size=16, depths=[2, 1], num_attention_heads=[2, 4], window_size=4, squeeze_factor=4)
            picture = HatForImageSuperResolution(HatConfig(upscale=2, **sizes)).eval()(torch.rand(1, 3, 16, 16)).reconstruction
        """,
        check="picture.shape == (1, 3, 32, 32)",
    ),
    Entry(
        id="dlgsanet",
        leaf="vision/super_resolution_reconstruction",
        title="Dynamic local filters and sparse global attention (DLGSANet, 2023)",
        provider="hf_ext",
        target="dlgsanet",
        stage="design",
        application="vision",
        task="image-to-image",
        snippet="""
            from hf_ext.models.dlgsanet import DLGSANetConfig, DLGSANetForImageSuperResolution

            sizes = dict(hidden_size=16, depths=[1, 2], kernel_size=3, filter_group_size=4, num_attention_heads=2, attention_window_size=7)
            picture = DLGSANetForImageSuperResolution(DLGSANetConfig(upscale=2, **sizes)).eval()(torch.rand(1, 3, 16, 16)).reconstruction
        """,
        check="picture.shape == (1, 3, 32, 32)",
    ),
    Entry(
        id="dwformer",
        leaf="vision/super_resolution_reconstruction",
        title="Pictures from a camera under the display (DWFormer, 2023)",
        provider="hf_ext",
        target="dwformer",
        stage="design",
        application="vision",
        task="image-to-image",
        snippet="""
            from hf_ext.models.dwformer import DWFormerConfig, DWFormerForImageRestoration

            sizes = dict(hidden_sizes=[8, 12, 16, 12, 8], mlp_ratios=[2, 1, 2, 1, 2], depths=[1, 1, 2, 1, 1], squeeze_factor=2)
            picture = DWFormerForImageRestoration(DWFormerConfig(**sizes)).eval()(torch.rand(1, 3, 16, 16)).reconstruction
        """,
        check="picture.shape == (1, 3, 16, 16)",
    ),
    Entry(
        id="imagegpt",
        leaf="vision/image_generation",
        title="Pixels one after the other (ImageGPT, 2020)",
        provider="transformers",
        target="transformers.ImageGPTForCausalImageModeling",
        stage="design",
        application="vision",
        task="unconditional-image-generation",
        snippet="""
            from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

            config = ImageGPTConfig(vocab_size=17, n_positions=64, n_embd=32, n_layer=1, n_head=4)    # 16 colours and a start token
            logits = ImageGPTForCausalImageModeling(config).eval()(torch.randint(0, 16, (2, 64))).logits
        """,
        check="logits.shape == (2, 64, 16)",
        examples=("openai/imagegpt-small",),
    ),
    Entry(
        id="dit",
        leaf="vision/image_generation",
        title="Diffusion with a transformer (DiT, 2023)",
        provider="diffusers",
        target="diffusers.DiTPipeline",
        stage="design",
        application="vision",
        task="unconditional-image-generation",
        snippet="""
            from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

            sizes = dict(sample_size=8, patch_size=2, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=10)
            transformer = DiTTransformer2DModel(in_channels=4, out_channels=8, **sizes).eval()
            pipeline = DiTPipeline(transformer, AutoencoderKL(block_out_channels=[8], norm_num_groups=4), DDIMScheduler())
            pipeline.set_progress_bar_config(disable=True)
            pictures = pipeline([1], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
        """,
        check="pictures.shape == (1, 8, 8, 3)",
        examples=("facebook/DiT-XL-2-256",),
    ),
    planned(
        "dtr",
        "vision/image_generation",
        "Channels for each stage of denoising (DTR, 2024)",
        "vision",
        "unconditional-image-generation",
    ),
    planned(
        "dimr",
        "vision/image_generation",
        "Several resolutions at once (DiMR, 2024)",
        "vision",
        "unconditional-image-generation",
    ),
    planned(
        "dit3d",
        "vision/image_generation",
        "Point clouds of shapes (DiT-3D, 2023)",
        "vision",
        "unconditional-3d-generation",
    ),
    Entry(
        id="detr",
        leaf="vision/object_detection",
        title="DETR; also Conditional, Deformable, DAB, RT-DETR, YOLOS (AutoModelForObjectDetection)",
        provider="transformers",
        target="transformers.DetrForObjectDetection",
        stage="design",
        application="vision",
        task="object-detection",
        snippet="""
            from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

            backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
            sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4)
            model = DetrForObjectDetection(DetrConfig(backbone_config=backbone, num_queries=7, num_labels=3, **sizes)).eval()
            output = model(torch.rand(1, 3, 64, 64))
        """,
        check="output.pred_boxes.shape == (1, 7, 4) and output.logits.shape == (1, 7, 4)",
        examples=("facebook/detr-resnet-50",),
    ),
    planned("rt_detr", "vision/object_detection", "In real time (RT-DETR, 2023)", "vision", "object-detection"),
    planned(
        "group_detr",
        "vision/object_detection",
        "Groups of queries in training (Group DETR, 2023)",
        "vision",
        "object-detection",
    ),
    planned(
        "relation_detr",
        "vision/object_detection",
        "Relations of positions (Relation DETR, 2024)",
        "vision",
        "object-detection",
    ),
    planned(
        "flatformer",
        "vision/object_detection",
        "Point clouds, flattened into windows (FlatFormer, 2023)",
        "vision",
        "object-detection",
    ),
    planned(
        "motformer3d",
        "vision/object_detection",
        "Tracking in three dimensions (3DMOTFormer, 2023)",
        "vision",
        "object-tracking",
    ),
    # -- multimodal ---------------------------------------------------------------------------------------------------
    Entry(
        id="vilt",
        leaf="multimodal/visual_question_answering",
        title="ViLT; also BLIP, LXMERT (AutoModelForVisualQuestionAnswering; the pipeline is gone)",
        provider="transformers",
        target="transformers.ViltForQuestionAnswering",
        stage="design",
        application="text and vision",
        task="visual-question-answering",
        snippet="""
            from transformers import ViltConfig, ViltForQuestionAnswering

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)
            model = ViltForQuestionAnswering(ViltConfig(vocab_size=100, num_labels=6, **sizes)).eval()
            logits = model(input_ids=torch.randint(3, 100, (2, 8)), pixel_values=torch.rand(2, 3, 32, 32)).logits
        """,
        check="logits.shape == (2, 6)",
        examples=("dandelin/vilt-b32-finetuned-vqa",),
    ),
    Entry(
        id="clip",
        leaf="multimodal/classification_segmentation",
        title="Classes by their names (CLIP, 2021; zero-shot-image-classification)",
        provider="transformers",
        target="transformers.CLIPModel",
        stage="design",
        application="text and vision",
        task="zero-shot-image-classification",
        snippet="""
            from transformers import CLIPConfig, CLIPModel

            layers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
            ids = dict(vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2)
            config = CLIPConfig(text_config=layers | ids, vision_config=layers | dict(image_size=32, patch_size=8), projection_dim=16)
            output = CLIPModel(config).eval()(input_ids=torch.randint(3, 100, (3, 8)), pixel_values=torch.rand(2, 3, 32, 32))
        """,
        check="output.logits_per_image.shape == (2, 3)",
        examples=("openai/clip-vit-base-patch32",),
    ),
    Entry(
        id="clipseg",
        leaf="multimodal/classification_segmentation",
        title="Segments by their names (CLIPSeg, 2022; also GroupViT, OneFormer)",
        provider="transformers",
        target="transformers.CLIPSegForImageSegmentation",
        stage="design",
        application="text and vision",
        task="image-segmentation",
        snippet="""
            from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

            layers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
            text = layers | dict(vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2)
            decoder = dict(extract_layers=[0, 1], reduce_dim=16, decoder_num_attention_heads=4, decoder_intermediate_size=32)
            config = CLIPSegConfig(text_config=text, vision_config=layers | dict(image_size=32, patch_size=8), projection_dim=16, **decoder)
            model = CLIPSegForImageSegmentation(config).eval()
            logits = model(input_ids=torch.randint(3, 100, (2, 8)), pixel_values=torch.rand(2, 3, 32, 32)).logits
        """,
        check="logits.shape == (2, 32, 32)",
        examples=("CIDAS/clipseg-rd64-refined",),
    ),
    Entry(
        id="blip",
        leaf="multimodal/captioning",
        title="BLIP; also GIT and chat models (image-text-to-text)",
        provider="transformers",
        target="transformers.BlipForConditionalGeneration",
        stage="design",
        application="text and vision",
        task="image-text-to-text",
        snippet="""
            from transformers import BlipConfig, BlipForConditionalGeneration

            layers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
            ids = dict(vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2, sep_token_id=2, encoder_hidden_size=32)
            config = BlipConfig(text_config=layers | ids, vision_config=layers | dict(image_size=32, patch_size=8), projection_dim=16)
            caption = BlipForConditionalGeneration(config).eval().generate(torch.rand(2, 3, 32, 32), max_new_tokens=6)
        """,
        check="caption.shape[0] == 2",
        examples=("Salesforce/blip-image-captioning-base",),
    ),
    Entry(
        id="visualbert",
        leaf="multimodal/commonsense_reasoning",
        title="Which answer fits the picture? VisualBERT on VCR (2019)",
        provider="transformers",
        target="transformers.VisualBertForMultipleChoice",
        stage="design",
        application="text and vision",
        task="multiple-choice",
        snippet="""
            from transformers import VisualBertConfig, VisualBertForMultipleChoice

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, visual_embedding_dim=20)
            model = VisualBertForMultipleChoice(VisualBertConfig(vocab_size=100, **sizes)).eval()
            ids, regions = torch.randint(3, 100, (2, 4, 8)), torch.randn(2, 4, 5, 20)    # for each answer, words and what a detector sees
            words = {"input_ids": ids, "attention_mask": ids.new_ones(2, 4, 8), "token_type_ids": ids.new_zeros(2, 4, 8)}
            seen = {"visual_attention_mask": ids.new_ones(2, 4, 5), "visual_token_type_ids": ids.new_ones(2, 4, 5)}
            logits = model(visual_embeds=regions, **words, **seen).logits
        """,
        check="logits.shape == (2, 4)",
        examples=("uclanlp/visualbert-vcr",),
    ),
    Entry(
        id="stable_diffusion",
        leaf="multimodal/text_to_image",
        title="Stable Diffusion's network (DiffusionPipeline)",
        provider="diffusers",
        target="diffusers.UNet2DConditionModel",
        stage="design",
        application="text and vision",
        task="text-to-image",
        snippet="""
            from diffusers import UNet2DConditionModel

            blocks = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
            sizes = dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4)
            unet = UNet2DConditionModel(norm_num_groups=4, **sizes, **blocks).eval()
            sample = unet(torch.randn(1, 4, 8, 8), 10, encoder_hidden_states=torch.randn(1, 6, 16)).sample    # of a text encoder
        """,
        check="sample.shape == (1, 4, 8, 8)",
        examples=("stable-diffusion-v1-5/stable-diffusion-v1-5",),
    ),
    Entry(
        id="pixart_delta",
        leaf="multimodal/text_to_image",
        title="A few steps, and control by a picture (PixArt-δ, 2024)",
        provider="hf_ext",
        target="pixart_delta",
        stage="design",
        application="text and vision",
        task="text-to-image",
        snippet="""
            from hf_ext.models.pixart_delta import PixArtControlNetTransformer2DModel

            sizes = dict(num_attention_heads=2, attention_head_dim=12, num_layers=4, cross_attention_dim=24, caption_channels=16)
            control = dict(num_control_layers=2, use_additional_conditions=False)
            model = PixArtControlNetTransformer2DModel(in_channels=4, out_channels=8, sample_size=8, **control, **sizes).eval()
            noise, edges, words = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.randn(1, 6, 16)
            more = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}, "controlnet_cond": edges}
            sample = model(noise, encoder_hidden_states=words, timestep=torch.tensor([10]), **more).sample
        """,
        check="sample.shape == (1, 8, 8, 8)",
    ),
    planned(
        "easycontrol",
        "multimodal/text_to_image",
        "Conditions as light adapters (EasyControl, 2025)",
        "text and vision",
        "text-to-image",
    ),
    planned(
        "relactrl",
        "multimodal/text_to_image",
        "Control where it matters (RelaCtrl, 2025)",
        "text and vision",
        "text-to-image",
    ),
    planned(
        "ted_viton",
        "multimodal/text_to_image",
        "Trying clothes on (TED-VITON, 2024)",
        "text and vision",
        "image-to-image",
    ),
    planned(
        "a_sdm",
        "multimodal/text_to_image",
        "Stable Diffusion, assembled smaller (A-SDM, 2024)",
        "text and vision",
        "text-to-image",
    ),
    Entry(
        id="cogvideox",
        leaf="multimodal/text_to_video",
        title="CogVideoX's network (CogVideoXPipeline)",
        provider="diffusers",
        target="diffusers.CogVideoXTransformer3DModel",
        stage="design",
        application="text and vision",
        task="text-to-video",
        snippet="""
            from diffusers import CogVideoXTransformer3DModel

            sizes = dict(num_attention_heads=2, attention_head_dim=16, num_layers=1, text_embed_dim=16, time_embed_dim=8)
            shape = dict(sample_width=8, sample_height=8, sample_frames=5, patch_size=2, max_text_seq_length=6)
            model = CogVideoXTransformer3DModel(in_channels=4, out_channels=4, **sizes, **shape).eval()
            words, noise = torch.randn(1, 6, 16), torch.randn(1, 2, 4, 8, 8)    # frames of latents
            sample = model(noise, encoder_hidden_states=words, timestep=torch.tensor([10])).sample
        """,
        check="sample.shape == (1, 2, 4, 8, 8)",
        examples=("zai-org/CogVideoX-2b",),
    ),
    planned(
        "vdt",
        "multimodal/text_to_video",
        "Video by masks: predict, animate, fill in (VDT, 2023)",
        "text and vision",
        "video-to-video",
    ),
    Entry(
        id="speecht5",
        leaf="multimodal/text_to_speech",
        title="SpeechT5; also VITS, FastSpeech 2 (text-to-audio)",
        provider="transformers",
        target="transformers.SpeechT5ForTextToSpeech",
        stage="design",
        application="audio",
        task="text-to-audio",
        snippet="""
            from transformers import SpeechT5Config, SpeechT5ForTextToSpeech

            layers = dict(hidden_size=32, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=64)
            decoder = dict(decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, speech_decoder_prenet_units=32)
            config = SpeechT5Config(vocab_size=100, speaker_embedding_dim=16, speech_decoder_postnet_units=16, **layers, **decoder)
            frames = SpeechT5ForTextToSpeech(config).eval().generate_speech(
                torch.randint(3, 100, (1, 8)), speaker_embeddings=torch.randn(1, 16), maxlenratio=2.0
            )
        """,
        check="frames.shape[1] == 80 and frames.isfinite().all()",
        examples=("microsoft/speecht5_tts",),
    ),
    planned("transformer_tts", "multimodal/text_to_speech", "Transformer TTS (2018)", "audio", "text-to-audio"),
    Entry(
        id="layoutlmv3",
        leaf="multimodal/document_understanding",
        title="Words, where they stand, and the page (LayoutLMv3, 2022; also TAPAS for tables)",
        provider="transformers",
        target="transformers.LayoutLMv3ForTokenClassification",
        stage="design",
        application="text and vision",
        task="document-question-answering",
        snippet="""
            from transformers import LayoutLMv3Config, LayoutLMv3ForTokenClassification

            layers = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, coordinate_size=5, shape_size=6)
            config = LayoutLMv3Config(vocab_size=100, input_size=32, num_labels=4, **layers)
            corners = torch.randint(0, 500, (2, 8, 2))
            boxes = torch.cat((corners, corners + 100), -1)    # in thousandths of the page
            model = LayoutLMv3ForTokenClassification(config).eval()
            logits = model(input_ids=torch.randint(3, 100, (2, 8)), bbox=boxes, pixel_values=torch.rand(2, 3, 32, 32)).logits
        """,
        check="logits.shape == (2, 8, 4)",
        examples=("microsoft/layoutlmv3-base",),
    ),
    Entry(
        id="workload_forecast",
        leaf="multimodal/resource_allocation",
        title="Load of machines ahead of time, for a scheduler: a general forecaster",
        provider="transformers",
        target="transformers.PatchTSTForPrediction",
        stage="design",
        application="time series",
        task="time-series-forecasting",
        snippet="""
            from transformers import PatchTSTConfig, PatchTSTForPrediction

            sizes = dict(d_model=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, patch_length=4, patch_stride=4)
            config = PatchTSTConfig(num_input_channels=3, context_length=32, prediction_length=8, **sizes)
            forecast = PatchTSTForPrediction(config).eval()(past_values=torch.rand(2, 32, 3)).prediction_outputs    # CPU, memory, disk
        """,
        check="forecast.shape == (2, 8, 3)",
    ),
    Entry(
        id="itransformer",
        leaf="multimodal/resource_allocation",
        title="The same by attention between the quantities (iTransformer, 2023)",
        provider="hf_ext",
        target="itransformer",
        stage="design",
        application="time series",
        task="time-series-forecasting",
        snippet="""
            from hf_ext.models.itransformer import ITransformerConfig, ITransformerForPrediction

            sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=2)
            config = ITransformerConfig(context_length=32, prediction_length=8, num_input_channels=3, **sizes)
            model = ITransformerForPrediction(config).eval()
            forecast = model(past_values=torch.rand(2, 32, 3)).prediction_outputs
        """,
        check="forecast.shape == (2, 8, 3)",
    ),
    # -- audio and speech ---------------------------------------------------------------------------------------------
    Entry(
        id="wav2vec2_ctc",
        leaf="audio_speech/speech_recognition",
        title="wav2vec 2.0; also HuBERT, Conformers (AutoModelForCTC, AutoModelForRNNT)",
        provider="transformers",
        target="transformers.Wav2Vec2ForCTC",
        stage="design",
        application="audio",
        task="automatic-speech-recognition",
        snippet="""
            from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

            layers = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
            front = dict(conv_dim=(16, 16), conv_stride=(10, 8), conv_kernel=(10, 8), num_conv_pos_embedding_groups=4)
            logits = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=30, **layers, **front)).eval()(torch.randn(2, 8000)).logits
        """,
        check="logits.shape[0] == 2 and logits.shape[2] == 30",
        examples=("facebook/wav2vec2-base-960h",),
    ),
    Entry(
        id="whisper",
        leaf="audio_speech/speech_recognition",
        title="Whisper (AutoModelForSpeechSeq2Seq)",
        provider="transformers",
        target="transformers.WhisperForConditionalGeneration",
        stage="design",
        application="audio",
        task="automatic-speech-recognition",
        snippet="""
            from transformers import WhisperConfig, WhisperForConditionalGeneration

            sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4)
            ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3)
            config = WhisperConfig(vocab_size=100, num_mel_bins=16, max_source_positions=50, max_target_positions=32, **sizes, **ids)
            model = WhisperForConditionalGeneration(config).eval()
            logits = model(torch.randn(2, 16, 100), decoder_input_ids=torch.tensor([[3], [3]])).logits
        """,
        check="logits.shape == (2, 1, 100)",
        examples=("openai/whisper-tiny",),
    ),
    planned(
        "stateful_conformer",
        "audio_speech/speech_recognition",
        "Streaming with caches (stateful Conformer, 2023)",
        "audio",
        "automatic-speech-recognition",
    ),
    Entry(
        id="spectral_masks",
        leaf="audio_speech/speech_separation",
        title="Masks over the spectrogram from a general encoder; Transformers has no model made for it",
        provider="transformers",
        target="transformers.Wav2Vec2ConformerModel",
        stage="design",
        application="audio",
        task="audio-to-audio",
        snippet="""
            from transformers import BertConfig, BertModel

            mixture, window = torch.randn(2, 4000), torch.hann_window(128)
            spectrum = torch.stft(mixture, 128, 64, window=window, return_complex=True).mT    # (2, frames, 65)
            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
            encoder = BertModel(BertConfig(vocab_size=1, **sizes), add_pooling_layer=False).eval()
            into, out = torch.nn.Linear(65, 32), torch.nn.Linear(32, 2 * 65)    # a mask for each of two speakers
            masks = out(encoder(inputs_embeds=into(spectrum.abs())).last_hidden_state).unflatten(-1, (2, 65)).softmax(2)
            speakers = [torch.istft((masks[:, :, s] * spectrum).mT, 128, 64, window=window, length=4000) for s in (0, 1)]
        """,
        check="torch.allclose(speakers[0] + speakers[1], mixture, atol=1e-4)",
    ),
    planned(
        "deftan2", "audio_speech/speech_separation", "Several microphones (DeFTAN-II, 2023)", "audio", "audio-to-audio"
    ),
    planned(
        "mossformer", "audio_speech/speech_separation", "One microphone (MossFormer, 2023)", "audio", "audio-to-audio"
    ),
    Entry(
        id="ast",
        leaf="audio_speech/audio_classification",
        title="The audio spectrogram transformer (AST, 2021; AutoModelForAudioClassification)",
        provider="transformers",
        target="transformers.ASTForAudioClassification",
        stage="design",
        application="audio",
        task="audio-classification",
        snippet="""
            from transformers import ASTConfig, ASTForAudioClassification

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_length=64, num_mel_bins=32)
            logits = ASTForAudioClassification(ASTConfig(num_labels=5, **sizes)).eval()(torch.randn(2, 64, 32)).logits
        """,
        check="logits.shape == (2, 5)",
        examples=("MIT/ast-finetuned-audioset-10-10-0.4593",),
    ),
    Entry(
        id="lmuformer",
        leaf="audio_speech/audio_classification",
        title="Commands, frame by frame, by Legendre memories (LMUFormer, 2024)",
        provider="hf_ext",
        target="lmuformer",
        stage="design",
        application="audio",
        task="audio-classification",
        snippet="""
            from hf_ext.models.lmuformer import LMUFormerConfig, LMUFormerForAudioClassification

            sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
            config = LMUFormerConfig(num_mel_bins=12, theta=20, max_length=20, num_labels=4, **sizes)
            logits = LMUFormerForAudioClassification(config).eval()(torch.randn(2, 20, 12)).logits
        """,
        check="logits.shape == (2, 4)",
    ),
    Entry(
        id="xvector",
        leaf="audio_speech/speaker_recognition",
        title="One vector for a voice (x-vectors on wav2vec 2.0; AutoModelForAudioXVector)",
        provider="transformers",
        target="transformers.Wav2Vec2ForXVector",
        stage="design",
        application="audio",
        task="audio-classification",
        snippet="""
            from transformers import Wav2Vec2Config, Wav2Vec2ForXVector

            layers = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
            front = dict(conv_dim=(16, 16), conv_stride=(10, 8), conv_kernel=(10, 8), num_conv_pos_embedding_groups=4)
            head = dict(tdnn_dim=(16, 16), tdnn_kernel=(5, 3), tdnn_dilation=(1, 2), xvector_output_dim=12)
            voices = Wav2Vec2ForXVector(Wav2Vec2Config(**layers, **front, **head)).eval()(torch.randn(2, 8000)).embeddings
        """,
        check="voices.shape == (2, 12)",
        examples=("anton-l/wav2vec2-base-superb-sv",),
    ),
    # -- signals ------------------------------------------------------------------------------------------------------
    Entry(
        id="modulation",
        leaf="signal/wireless_network",
        title="Which modulation, which jammer? A general classifier of series on in-phase and quadrature samples",
        provider="transformers",
        target="transformers.PatchTSTForClassification",
        stage="design",
        application="signals",
        task="signal-classification",
        snippet="""
            from transformers import PatchTSTConfig, PatchTSTForClassification

            sizes = dict(d_model=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, patch_length=8, patch_stride=8)
            model = PatchTSTForClassification(PatchTSTConfig(num_input_channels=2, context_length=128, num_targets=11, **sizes)).eval()
            logits = model(past_values=torch.randn(2, 128, 2)).prediction_logits
        """,
        check="logits.shape == (2, 11)",
    ),
    planned(
        "dt_ddnn",
        "signal/wireless_network",
        "Jamming in 5G, with two thresholds (2024)",
        "signals",
        "signal-classification",
    ),
    planned(
        "mt3",
        "signal/wireless_network",
        "Many targets from noisy measurements (MT3, 2021)",
        "signals",
        "object-tracking",
    ),
    Entry(
        id="packet_bytes",
        leaf="signal/network_traffic",
        title="What traffic is it? A general classifier of texts on the bytes of packets",
        provider="transformers",
        target="transformers.BertForSequenceClassification",
        stage="design",
        application="signals",
        task="traffic-classification",
        snippet="""
            from transformers import BertConfig, BertForSequenceClassification

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_position_embeddings=256)
            model = BertForSequenceClassification(BertConfig(vocab_size=257, num_labels=7, **sizes)).eval()
            packets = torch.randint(0, 256, (2, 200), dtype=torch.uint8)
            logits = model(packets.long() + 1).logits    # 0 is padding
        """,
        check="logits.shape == (2, 7)",
    ),
    planned(
        "flow_transformer",
        "signal/network_traffic",
        "Intrusions in flows (FlowTransformer, 2023)",
        "signals",
        "tabular-classification",
    ),
    planned(
        "netmamba",
        "signal/network_traffic",
        "Pre-trained on bytes (NetMamba, 2024)",
        "signals",
        "traffic-classification",
    ),
    planned(
        "netfound", "signal/network_traffic", "A foundation model (netFound, 2023)", "signals", "traffic-classification"
    ),
    Entry(
        id="heart_beats",
        leaf="signal/medical_signal",
        title="Beats in an electrocardiogram: a general classifier of series on twelve leads",
        provider="transformers",
        target="transformers.PatchTSMixerForTimeSeriesClassification",
        stage="design",
        application="signals",
        task="signal-classification",
        snippet="""
            from transformers import PatchTSMixerConfig, PatchTSMixerForTimeSeriesClassification

            sizes = dict(d_model=16, num_layers=1, patch_length=8, patch_stride=8)
            config = PatchTSMixerConfig(num_input_channels=12, context_length=128, num_targets=5, **sizes)
            logits = PatchTSMixerForTimeSeriesClassification(config).eval()(past_values=torch.randn(2, 128, 12)).prediction_outputs
        """,
        check="logits.shape == (2, 5)",
    ),
    Entry(
        id="aaren_signals",
        leaf="signal/medical_signal",
        title="The same from a stream, in constant memory (Aaren, 2024)",
        provider="hf_ext",
        target="aaren",
        stage="design",
        application="signals",
        task="signal-classification",
        snippet="""
            from hf_ext.models.aaren import AarenConfig, AarenForTimeSeriesClassification

            sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
            config = AarenConfig(num_input_channels=12, context_length=64, num_labels=5, **sizes)
            logits = AarenForTimeSeriesClassification(config).eval()(past_values=torch.randn(2, 64, 12)).logits
        """,
        check="logits.shape == (2, 5)",
    ),
    Entry(
        id="patchtst",
        leaf="signal/time_series",
        title="PatchTST; also Informer, Autoformer, PatchTSMixer, TimesFM",
        provider="transformers",
        target="transformers.PatchTSTForPrediction",
        stage="design",
        application="time series",
        task="time-series-forecasting",
        snippet="""
            from transformers import PatchTSTConfig, PatchTSTForPrediction

            sizes = dict(d_model=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, patch_length=4, patch_stride=4)
            config = PatchTSTConfig(num_input_channels=3, context_length=32, prediction_length=8, **sizes)
            forecast = PatchTSTForPrediction(config).eval()(past_values=torch.randn(2, 32, 3)).prediction_outputs
        """,
        check="forecast.shape == (2, 8, 3)",
        examples=("ibm-granite/granite-timeseries-patchtst",),
    ),
    Entry(
        id="gpht",
        leaf="signal/time_series",
        title="Pre-trained on many series, any horizon (GPHT, 2024)",
        provider="hf_ext",
        target="gpht",
        stage="design",
        application="time series",
        task="time-series-forecasting",
        snippet="""
            from hf_ext.models.gpht import GPHTConfig, GPHTForPrediction

            sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
            model = GPHTForPrediction(GPHTConfig(context_length=24, token_length=8, pooling_rates=[4, 1], **sizes)).eval()
            forecast = model(past_values=torch.randn(2, 24, 3)).prediction_outputs
        """,
        check="forecast.shape[0] == 2 and forecast.shape[2] == 3",
    ),
    Entry(
        id="tpgn",
        leaf="signal/time_series",
        title="A recurrent network that reads all steps at once (TPGN, 2024)",
        provider="hf_ext",
        target="tpgn",
        stage="design",
        application="time series",
        task="time-series-forecasting",
        snippet="""
            from hf_ext.models.tpgn import TPGNConfig, TPGNForPrediction

            config = TPGNConfig(context_length=12, prediction_length=8, period=4, num_input_channels=3, num_time_features=0, hidden_size=8)
            forecast = TPGNForPrediction(config).eval()(past_values=torch.randn(2, 12, 3)).prediction_outputs
        """,
        check="forecast.shape == (2, 8, 3)",
    ),
    Entry(
        id="informer",
        leaf="signal/time_series",
        title="Long horizons in one pass (Informer, 2021)",
        provider="hf_ext",
        target="informer",
        stage="design",
        application="time series",
        task="time-series-forecasting",
        snippet="""
            from hf_ext.models.informer import InformerGenerativeConfig, InformerGenerativeForPrediction

            sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, encoder_depths=[2, 1], num_input_channels=3)
            config = InformerGenerativeConfig(context_length=24, label_length=12, prediction_length=8, num_time_features=4, **sizes)
            past, future = torch.randn(2, 24, 4), torch.randn(2, 8, 4)    # calendar features
            forecast = InformerGenerativeForPrediction(config).eval()(
                past_values=torch.randn(2, 24, 3), past_time_features=past, future_time_features=future
            ).prediction_outputs
        """,
        check="forecast.shape == (2, 8, 3)",
    ),
    Entry(
        id="sensor_forecast",
        leaf="signal/traffic_forecasting",
        title="Speeds at many sensors, without the road map: a general forecaster",
        provider="transformers",
        target="transformers.PatchTSMixerForPrediction",
        stage="design",
        application="time series",
        task="time-series-forecasting",
        snippet="""
            from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

            sizes = dict(d_model=16, num_layers=1, patch_length=4, patch_stride=4, mode="mix_channel")
            config = PatchTSMixerConfig(num_input_channels=6, context_length=12, prediction_length=12, **sizes)
            forecast = PatchTSMixerForPrediction(config).eval()(past_values=torch.rand(2, 12, 6)).prediction_outputs
        """,
        check="forecast.shape == (2, 12, 6)",
    ),
    Entry(
        id="sttn",
        leaf="signal/traffic_forecasting",
        title="Attention over the road network and over time (STTN, 2020)",
        provider="hf_ext",
        target="sttn",
        stage="design",
        application="time series",
        task="time-series-forecasting",
        snippet="""
            from hf_ext.models.sttn import STTNConfig, STTNForPrediction

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, num_input_channels=1)
            config = STTNConfig(num_nodes=6, context_length=12, prediction_length=12, **sizes)
            forecast = STTNForPrediction(config).eval()(past_values=torch.rand(2, 12, 6, 1), adjacency=torch.rand(6, 6)).prediction_outputs
        """,
        check="forecast.shape[:3] == (2, 12, 6)",
    ),
    Entry(
        id="virtual_nodes",
        leaf="signal/traffic_forecasting",
        title="Nodes that stand for the whole network (virtual nodes, 2024)",
        provider="hf_ext",
        target="virtual_nodes",
        stage="design",
        application="time series",
        task="time-series-forecasting",
        snippet="""
            from hf_ext.models.virtual_nodes import VirtualNodesConfig, VirtualNodeSTGCNForPrediction

            sizes = dict(embedding_dim=4, num_input_channels=1, blocks=[[16, 8, 16], [16, 8, 24], [32, 24]])
            config = VirtualNodesConfig(num_nodes=6, num_virtual_nodes=3, prediction_length=12, **sizes)
            model = VirtualNodeSTGCNForPrediction(config).eval()
            forecast = model(past_values=torch.rand(2, 12, 6, 1), adjacency=torch.rand(6, 6)).prediction_outputs
        """,
        check="forecast.shape[:3] == (2, 12, 6)",
    ),
)
