"""What `import hf_ext` costs on top of `from transformers import AutoModel`, in fresh processes.

Our side also checks that no modeling module was loaded: an import that is quick because it was done before does not count.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import Contest

LIMIT = 1.25
PEER = "from transformers import AutoModel"
OURS = f"import hf_ext; {PEER}"
CHECK = """
import sys
eager = [m for m in sys.modules if m.startswith("hf_ext.") and ".modeling_" in m or m == "transformers.modeling_utils"]
if eager:
    sys.exit(f"import hf_ext loaded {', '.join(eager)}")
"""


def contests(reference: Path | None = None) -> Iterator[Contest]:
    yield Contest("import", ours=lambda: run(OURS + CHECK), peer=lambda: run(PEER), peer_name=PEER)


def run(code: str) -> None:
    """Runs a line of Python in a process of its own; a `RuntimeError` carries what it complains about."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
