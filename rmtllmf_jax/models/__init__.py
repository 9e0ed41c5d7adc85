"""Backbones in Flax with Hugging Face names, their weights, and the frozen heads on top."""
