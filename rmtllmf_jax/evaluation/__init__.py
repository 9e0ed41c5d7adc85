"""How good a model is on its tasks."""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
