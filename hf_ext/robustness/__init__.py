"""How classifiers hold up against perturbed images: attacks, what they do to exits, and what carries over between networks.

    adversarial = pgd(model, images, labels, epsilon=8 / 255)
    table = transfer_study(static, dynamic, loader)

`images` are (B, channels, height, width) in [0, 1], and bounds are in the same units. Any Transformers image classifier serves; one whose
processor normalizes goes into `PixelSpace` first. Networks with exits are those of `hf_ext.models.dynn`.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "attacks": ["early", "early_target", "pgd", "pgd_avg", "pgd_max", "slowdown", "universal_slowdown"],
        "classifiers": ["PixelSpace", "answers", "every_answer", "is_multi_exit", "predictions"],
        "metrics": [
            "Threshold",
            "attack_success",
            "choose_threshold",
            "cumulative_exits",
            "early_success",
            "efficacy",
            "efficacy_of",
            "exit_costs",
            "transfer_rate",
        ],
        "report": ["Line", "robustness_report"],
        "study": ["ATTACKS", "Attack", "attack_cost", "steps_until_fooled", "transfer_study"],
    },
)
