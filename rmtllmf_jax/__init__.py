"""R-MTLLMF in JAX: fuse task vectors that arrive over noisy and attacked MIMO uplinks.

The sub-packages, in the order in which they build on each other (docs/architecture.md)::

    fusion | channel < uplink < models < data < evaluation < training < defences
           < runs < gradients < sweep < report < cli

``import rmtllmf_jax`` loads none of them; each loads at its first use.
"""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

__version__ = "0.2.0"
