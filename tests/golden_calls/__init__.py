"""How to call the cases that are not one forward of one converted model: `tests/golden_calls/<slug>.py` holds `run(case)`."""
