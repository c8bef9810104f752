"""Extra trainable parts on a model that stays as it is, where PEFT has no socket for them."""
