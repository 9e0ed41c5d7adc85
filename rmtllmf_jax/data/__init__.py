"""Labelled images: tasks, sources, a decoded cache and seeded splits. Needs no jax."""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
