"""Backbones in Flax with Hugging Face names, their weights, and the frozen heads on top."""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
