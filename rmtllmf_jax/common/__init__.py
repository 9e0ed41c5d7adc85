"""Shared by all sub-packages: one exception, atomic files, progress bars. Does not import jax."""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
