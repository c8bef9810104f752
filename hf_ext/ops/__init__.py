"""Ways to compute: one package per op, `reference.py` the definition, faster forms beside it, one public function that picks."""
