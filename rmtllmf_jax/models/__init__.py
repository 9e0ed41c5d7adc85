"""Backbones in Flax with Hugging Face names, their weights, and the frozen heads on top."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
