"""The demo: what it shows is measured, and what is shipped beats the plain alternative."""

from pathlib import Path

import pytest
from PIL import Image

from hf_ext.catalog import METHODS
from hf_ext.demo import SCENES, Shown, is_trained, play, write_page
from hf_ext.demo.page import Picture

TRAINED = [slug for slug in SCENES if is_trained(slug)]


@pytest.mark.parametrize("slug", TRAINED)
def test_scene_measures_and_draws(slug, tmp_path):
    shown = play(slug, lambda items, description: items)
    assert shown.ours and shown.baseline and shown.seconds > 0
    assert shown.pictures or shown.text
    write_page([shown], tmp_path / "index.html")
    assert METHODS[slug].arxiv in (tmp_path / "index.html").read_text()


def test_page_escapes_what_it_shows(tmp_path):
    shown = Shown("<task>", "metric", "1 & 2", "3", [Picture(Image.new("RGB", (2, 2)), "a < b")], "<script>", "gla")
    write_page([shown], tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert "<script>" not in page and "&lt;task&gt;" in page and "data:image/png;base64," in page


def test_shipped_weights_are_small():
    for slug in TRAINED:
        for path in Path(METHODS[slug].card).rglob("*.safetensors"):
            assert path.stat().st_size <= 4_000_000 * 1.05, f"{path} is too large to ship"
