"""What snippets start from: small models made from configurations, with random weights. Put your own in their place."""

MODELS = {
    "bert": """
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        model = BertForSequenceClassification(config).eval()
        inputs = {"input_ids": torch.randint(3, 100, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
        labels = torch.tensor([0, 1])
    """,
    "teacher": """
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        teacher = BertForSequenceClassification(config).eval()
        smaller = BertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
        student = BertForSequenceClassification(smaller)
        inputs, labels = {"input_ids": torch.randint(3, 100, (8, 16))}, torch.randint(0, 2, (8,))
    """,
    "llama": """
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=100, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
        model = LlamaForCausalLM(config).eval()
        inputs = {"input_ids": torch.randint(3, 100, (2, 16))}
    """,
    "vit": """
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        config = ViTConfig(
            image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
        model = ViTForImageClassification(config).eval()
        inputs = {"pixel_values": torch.rand(2, 3, 32, 32)}
    """,
    "linear": """
        import torch

        torch.manual_seed(0)
        model = torch.nn.Linear(64, 64)
        inputs = torch.randn(256, 64)
    """,
    "attention": """
        import torch

        torch.manual_seed(0)
        q, k, v = torch.randn(3, 2, 4, 256, 16)    # batch, heads, tokens, channels
    """,
}
