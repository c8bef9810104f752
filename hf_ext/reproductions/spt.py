"""What product codes are worth: codebooks on blobs (the check of the authors' own test), and the true top keys that agreeing codes find."""

from __future__ import annotations

import torch
from sklearn.datasets import make_blobs

from hf_ext.layers.sparsified import ProductQuantizer
from hf_ext.ops.sparse_attention import count_matches, product_codes, quantize, quantizer_loss, select_keys

from . import Experiment, Row, Run

BATCH = 256
KEEP = 64  # of 512 keys


def codes(run: Run) -> list[Row]:
    """64 blobs in 16 dimensions, 4 subspaces of 16 codewords; then q and k of 64 channels from 16 blobs, 8 subspaces."""
    steps = int(run.options["steps"])
    points, blobs, centers = make_blobs(
        60_000, 16, centers=64, cluster_std=0.1, center_box=(-1, 1), random_state=0, return_centers=True
    )
    points, centers = (torch.tensor(x, dtype=torch.float32) for x in (points, centers))
    codebooks = learn(points, 4, steps, seed=0)
    own, centre = product_codes(points, codebooks), product_codes(centers, codebooks)
    agreement = (own == centre[torch.tensor(blobs)]).float().mean().item()
    error = (quantize(centre, codebooks) - centers).square().mean().item()
    return [
        Row("codes that agree with the centre's", agreement, note="the reference's quantizer: 0.76 to 0.79"),
        Row("mean square error at the centres", error, note="the reference's quantizer: 0.06 to 0.12"),
        Row(f"true top {KEEP} of 512 keys found", recall(), note=f"chance is {KEEP / 512}; 200 steps"),
    ]


def learn(points: torch.Tensor, width: int, steps: int, seed: int) -> torch.Tensor:
    """Codebooks after so many steps of Adam"""
    torch.manual_seed(seed)
    quantizer = ProductQuantizer(points.shape[1], width)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = points[torch.randint(len(points), (BATCH,))]
        optimizer.zero_grad()
        quantizer_loss(batch, quantizer.weight).backward()
        torch.nn.utils.clip_grad_norm_(quantizer.parameters(), 1.0)
        optimizer.step()
    return quantizer.weight.detach()


def recall() -> float:
    """Share of the keys of highest scores among those of most equal codes, without a causal mask"""
    torch.manual_seed(0)
    centers = torch.randn(16, 64)
    q, k = (centers[torch.randint(16, (512,))] + 0.5 * torch.randn(512, 64) for _ in range(2))
    codebooks = learn(torch.cat((q, k)), 8, 200, seed=1)
    matches = count_matches(product_codes(q, codebooks).T, product_codes(k, codebooks).T)
    chosen, _ = select_keys(matches, torch.tensor(True), KEEP)
    best = (q @ k.T).topk(KEEP).indices
    return (chosen.unsqueeze(-1) == best.unsqueeze(-2)).any(-1).float().mean().item()


EXPERIMENTS = {
    "codes": Experiment(
        "Product codes on blobs, and the keys they find",
        codes,
        minutes=1,
        options={"steps": (1500, "steps of Adam on the blobs, batches of 256")},
    )
}
