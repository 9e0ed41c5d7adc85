"""The whole pipeline over a grid: combinations, scenarios, draws, seeds, protections."""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
