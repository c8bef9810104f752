"""What surgery makes of GPT-2, Llama, BERT and ViT passes the passport, or is refused with the reason."""

import pytest

from tests.passport import CHECKS
from tests.surgery.bases import build, surgical_subject

LLM_DROP = [{"name": "llm_drop", "attention": [0, 2], "mlp": [1]}]
# layers that others were fused into are not quantized: the group is small
FUSEGPT = [{"name": "fusegpt", "layers": [1], "group_size": 2, "lora_rank": 4, "weight_lora_rank": 4}]
OPTIN = {"name": "optin", "neurons": ["0-20,30", "5-40", "0-47", ""]}
OPTIN_HEADS = [OPTIN | {"heads": ["0,2", "1", "", "0-3"]}]
OPTIN_TOKENS = [*OPTIN_HEADS, {"name": "optin", "merged": [0, 3, 0, 2]}]
OPTIN_GROUPS = [OPTIN | {"heads": ["0", "1", "", "0-1"]}]
PRE_RMSNORM = {"name": "pre_rmsnorm"}
COMPRESSED = PRE_RMSNORM | {"norm_variant": "crms", "fold_affine": True}

# slug -> base -> what config.json would list, or part of the reason why the base is refused
PLANS: dict[str, dict[str, list[dict] | str]] = {
    "optin": {"gpt2": OPTIN_HEADS, "llama": OPTIN_GROUPS, "bert": OPTIN_HEADS, "vit": OPTIN_TOKENS},
    # llama has RMSNorm already, and stays as it is
    "pre_rmsnorm": {"gpt2": [PRE_RMSNORM], "vit": [COMPRESSED], "bert": "post-norm"},
    "llm_drop": {"gpt2": LLM_DROP, "vit": LLM_DROP, "bert": "norms follow the residual sum"},  # llama: tests/tiny.py
    "fusegpt": {"gpt2": FUSEGPT, "llama": FUSEGPT, "bert": FUSEGPT, "vit": FUSEGPT},
}
CHANGED = [
    (slug, base, plan) for slug, plans in PLANS.items() for base, plan in plans.items() if isinstance(plan, list)
]
REFUSED = [(slug, base, plan) for slug, plans in PLANS.items() for base, plan in plans.items() if isinstance(plan, str)]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("slug", "base", "plan"), CHANGED, ids=[f"{slug}-{base}" for slug, base, _ in CHANGED])
def test_passport(slug, base, plan, check):
    CHECKS[check](surgical_subject(base, plan))


@pytest.mark.parametrize(("slug", "base", "reason"), REFUSED, ids=[f"{slug}-{base}" for slug, base, _ in REFUSED])
def test_a_base_that_a_recipe_does_not_fit_is_refused_with_the_reason(slug, base, reason):
    from importlib import import_module

    from hf_ext.surgery import RECIPES, apply

    recipe = getattr(import_module(f"hf_ext.surgery.{slug}"), RECIPES[slug])
    with pytest.raises(ValueError, match=reason):
        apply(build(base), recipe())
