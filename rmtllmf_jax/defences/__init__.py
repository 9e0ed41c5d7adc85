"""What protects a merged model: all that a defender chooses along the chain, including repairs.

Reference: R-MTLLMF (arXiv 2411.18220), section III.
"""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
