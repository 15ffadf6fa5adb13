"""The one training loop and its optimizers."""
