"""R-MTLLMF in JAX: fuse task vectors that arrive over noisy and attacked MIMO uplinks.

The rooms, in the order in which data flows through them (docs/house.md walks them)::

    data -> models -> training -> fusion -> channel -> uplink -> resilience
         -> evaluation -> sweep -> report

Import the room that you need, for example ``from rmtllmf_jax import channel``; importing this
package alone loads nothing heavy.
"""

__version__ = "0.1.0"
