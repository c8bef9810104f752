"""hf_ext: published methods, usable the way people already use Hugging Face.

`import hf_ext` makes every method of the catalogue known to the Auto classes, `pipeline()` and
`DiffusionPipeline`. It is cheap: configurations are loaded, modeling code waits for its first use.
"""

from .registry import register_all

__version__ = "0.1.0"

register_all()
