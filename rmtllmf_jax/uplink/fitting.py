"""Which parts of the chain go together: link, transport and estimators."""

from __future__ import annotations

import jax

from rmtllmf_jax.channel import Link
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.uplink.estimators import Estimator
from rmtllmf_jax.uplink.transports import MseTransport, Transport, is_of_mse


def require_fitting(
    link: Link, transport: Transport | MseTransport, estimators: tuple[Estimator, ...]
) -> None:
    """Check that the parts chosen along the chain can be combined.

    **Raises:** `InputError` that names those that cannot.
    """
    patterns = getattr(link.air, "patterns", ())
    if not is_of_mse(transport):
        require_filters(link, transport)
        for each in (*estimators, *[link.air] * bool(patterns)):
            raise InputError(
                f"{described(each)} needs errors of known variance, and {described(transport)} "
                "sends symbols: take the transport gaussian, sparse or coded."
            )
    if patterns and not getattr(transport, "by_leaf", True):
        raise InputError(
            f"{described(link.air)} protects some leaves, and {described(transport)} runs over "
            "all of them: leave the patterns out, or take gaussian or sparse."
        )
    jax.eval_shape(link.mse, jax.random.key(0))  # which refuses what cannot be together


def require_filters(link: Link, transport: Transport | MseTransport) -> None:
    """Check that symbols can be sent through a link.

    **Raises:** `InputError` for a preset without a channel, or a receiver without filters.
    """
    name = described(transport)
    if not link.preset.has_channel:
        raise InputError(
            f"the transport {name} sends symbols over a channel, and {described(link.preset)} has "
            "none: choose a channel preset, or the transport gaussian."
        )
    if not hasattr(link.receiver, "filters"):
        raise InputError(
            f"the transport {name} needs the receiver's filters, and {described(link.receiver)} "
            "has only errors: give it a method `filters`, or choose another receiver, or the "
            "transport gaussian."
        )
    jax.eval_shape(lambda key: link.filters(link.draw(key), key), jax.random.key(0))
