"""Methods that are a way to train: losses, and modules whose forward is one, which `Trainer` and Accelerate run as they are."""
