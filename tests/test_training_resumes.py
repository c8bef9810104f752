"""`reproductions.training.train` goes on from what a checkpoint holds, for models whose saved weights have other names too."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTForImageClassification

from hf_ext.reproductions import Run
from hf_ext.reproductions.training import TensorDataset, train

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PIXELS = TensorDataset(
    pixel_values=torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), labels=torch.arange(8) % 2
)
WORDS = torch.arange(48).view(8, 6) % 20
CASES = {
    "vit": (lambda: ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4, num_channels=1)), PIXELS),
    "bert": (
        lambda: BertForMaskedLM(BertConfig(**SMALL, vocab_size=20)),
        TensorDataset(input_ids=WORDS, labels=WORDS),
    ),
}


@pytest.mark.parametrize("validated", [False, True], ids=["last", "best"])
@pytest.mark.parametrize("name", CASES)
def test_a_finished_training_gives_its_weights_back(name, validated, tmp_path):
    build, data = CASES[name]
    run = Run("gla", tmp_path, {})
    options = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "disable_tqdm": True}
    trained = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        trained.append(train(run, build(), data, data if validated else None, **options).state_dict())
    for key, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][key], tensor, atol=0, rtol=0)
