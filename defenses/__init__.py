"""Defenses: architectures, losses, augmentations, and the training loop."""
