"""What a draw of sources is like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("unbiased", "local1d", "local2d", "source_dropout")
MOMENTS = ("training", "always")


@dataclass
class SSAConfig:
    """Settings of subsampled attention (arXiv 2306.01705). A model's configuration carries them as a dict, `config.ssa`.

    Args:
        kind: "unbiased", a draw without replacement (section 4.1); "local1d" and "local2d", a shuffle in which sources move by about
            `sigma` places, and then windows (section 4.2); "source_dropout", every sample masks sources at random, at full cost (EGT's).
        ratio: unbiased: ceil(tokens / ratio) sources are kept; at least 1.
        num_sources: unbiased: the number kept, instead of `ratio`; all of them where there are fewer.
        window_size: local1d: the tokens of a block. Targets of block t read the slots of blocks t - `look_back` to t + `look_ahead`.
        window: local2d: (height, width) of a window.
        grid: local2d: (height, width) of the tokens in raster order; None for the largest square. Tokens in excess stand first
            (class tokens): they see everything and are seen by everyone.
        sigma: standard deviation of the shuffle in places; half the (larger edge of the) window when None; 0 moves nothing.
        source_dropout: share of the sources that is masked, from 0 to below 1.
        share_heads, share_batch: whether heads and samples share a draw, which is what makes it cheap.
        when: "training": dense in eval mode; "always": subsampled there too, as passes of a self-ensemble are.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    kind: str = "unbiased"
    ratio: float = 4
    num_sources: int | None = None
    window_size: int | None = None
    look_back: int = 0
    look_ahead: int = 0
    window: Sequence[int] | None = None
    grid: Sequence[int] | None = None
    sigma: float | None = None
    source_dropout: float = 0.3
    share_heads: bool = True
    share_batch: bool = True
    when: str = "training"

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("when", MOMENTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")
        if not self.ratio >= 1:
            raise ValueError(f"ratio={self.ratio} must be at least 1")
        if self.num_sources is not None and self.num_sources < 1:
            raise ValueError(f"num_sources={self.num_sources} must be at least 1, or None for a ratio")
        if self.kind == "local1d" and (self.window_size is None or self.window_size < 1):
            raise ValueError(f"window_size={self.window_size} must be at least 1 for kind='local1d'")
        if self.look_back < 0 or self.look_ahead < 0:
            raise ValueError(f"look_back={self.look_back} and look_ahead={self.look_ahead} must be at least 0")
        if self.kind == "local2d" and not _is_pair(self.window):
            raise ValueError(f"window={self.window} must be (height, width), both at least 1, for kind='local2d'")
        if self.grid is not None and not _is_pair(self.grid):
            raise ValueError(f"grid={self.grid} must be (height, width), both at least 1, or None for a square")
        if self.sigma is not None and not 0 <= self.sigma < float("inf"):
            raise ValueError(f"sigma={self.sigma} must be at least 0 and finite, or None for half the window")
        if not 0 <= self.source_dropout < 1:
            raise ValueError(f"source_dropout={self.source_dropout} must be at least 0 and less than 1")

    @property
    def spread(self) -> float:
        """sigma, or its default"""
        return max(self.window or (self.window_size,)) / 2 if self.sigma is None else self.sigma

    def kept(self, tokens: int) -> int:
        """Sources that an unbiased draw keeps of so many."""
        return min(self.num_sources or -int(-tokens // self.ratio), tokens)

    def grid_of(self, tokens: int) -> tuple[int, int, int]:
        """(class tokens, height, width) of a sequence of so many tokens."""
        height, width = self.grid or (int(tokens**0.5),) * 2
        if height * width > tokens:
            raise ValueError(f"grid={self.grid} has {height * width} places, more than there are tokens: {tokens}")
        return tokens - height * width, height, width


def _is_pair(sizes: Sequence[int] | None) -> bool:
    return sizes is not None and len(sizes) == 2 and min(sizes) >= 1
