"""Routing Transformer: do the centroids find the clusters that are there, and the card's small language model, whose centroids learn
while it trains.
"""

from __future__ import annotations

import torch
from transformers import TrainerCallback

from hf_ext.data.text import byte_perplexity, byte_text
from hf_ext.files import replaced_files
from hf_ext.models.routing_transformer import RoutingTransformerConfig, RoutingTransformerForCausalLM
from hf_ext.ops.routed_attention import kmeans_step, normalize

from . import Experiment, Row, Run

# channels, centroids, items of a step
PROBLEMS = ((32, 8, 512), (64, 16, 1024))
STEPS, DECAY, NOISE = 200, 0.9, 0.1
CONTEXT = 128


def centroids(run: Run) -> list[Row]:
    """Items around as many random directions as there are centroids; 200 steps of online k-means from the model's own start."""
    rows = []
    for channels, clusters, count in PROBLEMS:
        losses, used = zip(*(find_directions(channels, clusters, count, seed) for seed in range(3)))
        name = f"{clusters} directions, {channels} channels"
        first, last = (", ".join(f"{loss[end]:.3f}" for loss in losses) for end in (0, -1))
        mean = sum(loss[-1] for loss in losses) / len(losses)
        rows.append(Row(f"commitment error after {STEPS} steps, {name}", mean, note=f"seeds {last}; before {first}"))
        note = "seeds " + ", ".join(map(str, used))
        rows.append(Row(f"centroids in use, {name}", sum(used) / len(used), note=note))
    return rows


def find_directions(channels: int, clusters: int, count: int, seed: int) -> tuple[list[float], int]:
    """Mean square distance to the nearest centroid, step by step, and how many centroids the last items chose."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    directions = torch.nn.functional.normalize(draw(clusters, channels), dim=-1)
    means = normalize(draw(1, clusters, channels))
    ema_count, ema_means = torch.zeros(1, clusters), means.clone()
    losses = []
    for _ in range(STEPS):
        chosen = directions[torch.randint(0, clusters, (count,), generator=generator)]
        items = normalize(chosen + NOISE * draw(count, channels))[None, None]
        step = kmeans_step(items, means, ema_count, ema_means, decay=DECAY, beta=1.0)
        means, ema_count, ema_means = step[2:]
        losses.append(step.loss.item())
    return losses, len(step.dist.argmin(-1).unique())


class Clusters(TrainerCallback):
    """The model's clustering error before and after training, on one batch."""

    def __init__(self, ids: torch.Tensor):
        self.ids, self.errors = ids, []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.look(model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.look(model)

    @torch.no_grad()
    def look(self, model: RoutingTransformerForCausalLM) -> None:
        training, config = model.training, model.config
        terms = 2 * (config.num_hidden_layers - config.first_routing_layer)  # queries and keys of each routing layer
        self.errors.append((model.eval()(self.ids).aux_loss / config.commitment_weight / terms).item())
        model.train(training)


@torch.no_grad()
def step_perplexity(model: RoutingTransformerForCausalLM, rows: torch.Tensor, start: int) -> float:
    """exp of the mean next-token loss over what comes after the first `start` tokens, one token a step: nothing later is known."""
    first = model(rows[:, :start], use_cache=True)
    logits, cache = [first.logits[:, -1:]], first.past_key_values
    for t in range(start, rows.shape[1] - 1):
        logits.append(model(rows[:, t : t + 1], past_key_values=cache, use_cache=True).logits)
    return torch.nn.functional.cross_entropy(torch.cat(logits, 1).flatten(0, 1), rows[:, start:].flatten()).exp().item()


def demo(run: Run) -> list[Row]:
    """Trains the byte-level model of the card on the text that ships with scikit-learn, and saves it there."""
    from .training import TensorDataset, train

    torch.manual_seed(0)
    text = byte_text(CONTEXT - 1)
    training, validation, test = (starting(rows) for rows in (text.train, text.validation, text.test))
    config = RoutingTransformerConfig(
        vocab_size=len(text.tokenizer),
        hidden_size=96,
        embedding_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_local_heads=2,
        num_routing_heads=2,
        first_routing_layer=1,
        num_clusters=4,
        cluster_window=32,
        block_size=16,
        look_back=16,
        max_relative_position=32,
        ema_decay=0.99,
        max_position_embeddings=CONTEXT,
        eos_token_id=text.tokenizer.eos_token_id,
    )
    clusters = Clusters(validation[:16])
    model = train(
        run,
        RoutingTransformerForCausalLM(config),
        TensorDataset(input_ids=training, labels=training),
        TensorDataset(input_ids=validation, labels=validation),
        callbacks=[clusters],
        max_steps=int(run.options["steps"]),
        save_steps=50,
        per_device_train_batch_size=16,
        learning_rate=4e-3,
        lr_scheduler_type="cosine",
        warmup_steps=30,
        weight_decay=0.5,
        max_grad_norm=1.0,
    )
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
        text.tokenizer.save_pretrained(folder)
    rows = [
        Row(
            "held-out perplexity per byte, all at once",
            byte_perplexity(model, test),
            dataset="scikit-learn descriptions",
            metric_type="perplexity",
            note=f"{model.num_parameters():,} parameters; clusters choose among later bytes too",
        ),
        Row(
            "held-out perplexity per byte, byte by byte",
            step_perplexity(model, test[:32], CONTEXT // 2),
            note="second halves of 32 windows; nothing later is known",
        ),
    ]
    if len(clusters.errors) == 2:
        before, after = clusters.errors
        rows.append(Row("commitment error of the routing heads", after, note=f"before training {before:.3f}"))
    return rows


def starting(rows: torch.Tensor) -> torch.Tensor:
    """Every window behind id 0, with which the model's texts start."""
    return torch.nn.functional.pad(rows, (1, 0))


EXPERIMENTS = {
    "centroids": Experiment("Online k-means on items around known directions", centroids, minutes=0.1),
    "demo": Experiment(
        "The small language model that the card ships",
        demo,
        minutes=4,
        options={"steps": (300, "optimizer steps of 16 windows of 128 bytes")},
    ),
}
