"""`hf-ext compress`: a new folder with the model, its measures and a card."""

import pytest
from transformers import AutoModelForCausalLM, ByT5Tokenizer, LlamaConfig

from hf_ext.cli import main


@pytest.fixture
def model(tmp_path):
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    (tmp_path / "text.txt").write_text("All models are wrong, some are useful. " * 20)
    return folder


def test_compresses_measures_and_writes_the_card(model, tmp_path, capsys):
    out, text = tmp_path / "out", str(tmp_path / "text.txt")
    line = ["compress", str(model), "--recipe", "llm_drop:attention=1", "--recipe", "llm_drop:mlp=1", "-o", str(out)]
    assert main([*line, "--calibration", text, "--evaluate", text]) == 0
    shown = capsys.readouterr().out
    card = (out / "README.md").read_text()
    for measure in ("parameters", "bytes on disk", "peak memory", "tokens/s", "perplexity"):
        assert measure in shown and measure in card
    assert "- llm_drop\n" in card and "pipeline_tag: text-generation" in card
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert [entry["name"] for entry in loaded.config.surgery] == ["llm_drop", "llm_drop"]
    assert (out / "tokenizer_config.json").is_file()
    assert main([*line, "--calibration", text]) == 0  # an earlier result is replaced


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "llm_drop:attention=1"], "needs a calibration"),
        (["--recipe", "magic"], "no recipe 'magic'"),
        (["--recipe", "repbn", "--evaluate", "nowhere.txt"], "There is no 'nowhere.txt'"),
    ],
)
def test_an_error_is_one_line_and_writes_nothing(model, tmp_path, capsys, options, message):
    assert main(["compress", str(model), *options, "-o", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_peoples_folders_are_not_replaced(model, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    assert main(["compress", str(model), "--recipe", "repbn", "-o", str(tmp_path / "out")]) == 1
    assert "holds other things" in capsys.readouterr().err
