"""The demo's page: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid var(--line); }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
figure { margin: 0; } figure img { max-width: 100%; border-radius: 4px; display: block; }
figcaption { font-size: .85rem; opacity: .75; margin: .3rem 0 1rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
pre { background: var(--soft); padding: .8rem; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


@dataclass
class Picture:
    """A PIL image or a matplotlib figure, with what it shows. `width`: in CSS pixels; None for its own."""

    image: Any
    caption: str
    width: int | None = None

    def png(self) -> bytes:
        buffer = io.BytesIO()
        if hasattr(self.image, "savefig"):
            self.image.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        else:
            self.image.save(buffer, format="png")
        return buffer.getvalue()

    def html(self) -> str:
        source = base64.b64encode(self.png()).decode()
        width = f' width="{self.width}"' if self.width else ""
        caption = escape(self.caption)
        return f'<figure><img alt="{caption}"{width} src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption></figure>'


def page(scenes: list[tuple[Any, Any]]) -> str:
    """The whole page for (method, shown) pairs."""
    rows = "\n".join(
        f'<tr><td><a href="#{method.slug}">{method.slug}</a></td><td>{escape(shown.task)}</td><td>{escape(shown.metric)}</td>'
        f'<td class="number">{escape(shown.baseline)}</td><td class="number">{escape(shown.ours)}</td>'
        f'<td class="number">{shown.seconds:.1f}</td></tr>'
        for method, shown in scenes
    )
    sections = "\n".join(_section(method, shown) for method, shown in scenes)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hf_ext: demo</title>
<style>{STYLE}</style>
<h1>hf_ext: what just ran</h1>
<p>Small checkpoints that ship with hf_ext, loaded through the ordinary Auto classes and pipelines, on real data that the
dependencies ship. Every number is from the run that wrote this page.</p>
<table>
<tr><th>method</th><th>task</th><th>metric</th><th>baseline</th><th>ours</th><th>seconds</th></tr>
{rows}
</table>
{sections}
</html>
"""


def _section(method: Any, shown: Any) -> str:
    pictures = "\n".join(picture.html() for picture in shown.pictures)
    text = f"<pre>{escape(shown.text)}</pre>" if shown.text else ""
    paper = f'<a href="https://arxiv.org/abs/{method.arxiv}">arXiv {method.arxiv}</a>' if method.arxiv else ""
    return f"""<section id="{method.slug}">
<h2>{escape(method.title)}</h2>
<p>{paper} · {escape(shown.task)} · {escape(shown.metric)}: baseline {escape(shown.baseline)}, ours <b>{escape(shown.ours)}</b></p>
{text}
<div class="pictures">
{pictures}
</div>
</section>"""
