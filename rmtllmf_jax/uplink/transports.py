"""Transports: what carries the users' task vectors over the channel, as values.

Those with `of_mse` need the users' MSE and no channel (`MseTransport`): `Gaussian`, the surrogate
of a link, an error of variance kappa_q^2 mu_q on every parameter; `Sparse` and `Coded`, which send
the best part of a vector, and `Adapter`, which sends factors of its matrices. The others send
symbols over the channel of the draw (`channel.link.send`), all users at the same time: `Analogue`,
with errors of the surrogate's power, and `Qam`, with errors of a different power.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeGuard, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Key, PyTree

from rmtllmf_jax.channel import link, modem
from rmtllmf_jax.channel.checks import require_positive
from rmtllmf_jax.channel.equalise import ColouredNoise, Equaliser
from rmtllmf_jax.channel.quantise import normalise
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.values import by_name, described, parse
from rmtllmf_jax.fusion.merge import PerUser
from rmtllmf_jax.fusion.trees import as_type_of, widened
from rmtllmf_jax.uplink.adapter import Adapter
from rmtllmf_jax.uplink.codes import Coded
from rmtllmf_jax.uplink.gaussian import Gaussian
from rmtllmf_jax.uplink.noise import leaf_number
from rmtllmf_jax.uplink.sparse import Sparse
from rmtllmf_jax.uplink.streams import Powers, Sending
from rmtllmf_jax.uplink.vectors import Shapes

_BLOCK = 1 << 16  # parameters of a user that are sent at once: memory is antennas x block
_OTHERS = 3  # folded into a block's key for users without a task vector; 0 to 2 are the link's


@runtime_checkable
class Transport(Protocol):
    """`(stacked, h_tilde, noise, equaliser, key) -> received`: frozen and hashable."""

    uses: float
    """Channel uses per parameter."""

    def __call__(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        h_tilde: Complex[Array, "antennas all_users"],
        noise: ColouredNoise,
        equaliser: Equaliser,
        key: Key[Array, ""],
    ) -> PyTree[Float[Array, "users ..."]]:
        """The task vectors of the channel's first users as the base station receives them."""


@runtime_checkable
class MseTransport(Protocol):
    """A transport that needs the users' MSE and no channel (`of_mse`): frozen and hashable."""

    of_mse: ClassVar[bool]

    @property
    def uses(self) -> float:
        """Channel uses per parameter, without side information that depends on the MSE."""

    def uses_of(self, mse: PerUser, shapes: Shapes) -> Float[Array, " users"]:
        """Channel uses per parameter of each user, all side information included.

        `shapes` are the shapes of the leaves, by path, without the axis of users.
        """

    def deliver(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        mse: PerUser | PyTree[Array],
        kappa: PerUser | PyTree[Array],
        key: Key[Array, ""],
        *,
        planned: PerUser | None = None,
    ) -> PyTree[Float[Array, "users ..."]]:
        """The task vectors as the base station receives them; `planned` are the expected MSEs."""

    def variance(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        mse: PerUser | PyTree[Array],
        kappa: PerUser | PyTree[Array],
    ) -> PyTree[Float[Array, " users"]]:
        """Mean power of the noise on an entry of each leaf and user, known to the receiver."""

    def energy(self, stacked: PyTree[Float[Array, "users ..."]]) -> PyTree[Float[Array, " users"]]:
        """Mean square of an entry of each leaf and user as sent, without the noise."""


class _Symbols:
    """Parameters sent symbol by symbol, each leaf in units of each user's own rms over it.

    The receiver knows these numbers, one per leaf and user. Long leaves are sent in blocks. Users
    of the channel that have no task vector send Gaussian parameters.
    """

    stage: ClassVar[str] = "transport"
    uses: ClassVar[float]
    cancellation: str
    size: int | None
    """Size of the constellation, `None` for analogue."""
    clip: float | None

    def __post_init__(self) -> None:
        require_known("cancellation", self.cancellation, link.CANCELLATIONS)

    def __call__(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        h_tilde: Complex[Array, "antennas all_users"],
        noise: ColouredNoise,
        equaliser: Equaliser,
        key: Key[Array, ""],
    ) -> PyTree[Float[Array, "users ..."]]:
        """The task vectors of the channel's first users as received, in their types.

        **Arguments:**

        - `noise`, `equaliser`: of the channel H~, by `channel.Link.filters`.
        - `key`: folded with a leaf's name, so that the noise of one does not depend on the others.
        """

        def one(path: tuple, leaf: Array) -> Array:
            of_leaf = jax.random.fold_in(key, leaf_number(path))
            return _sent(self, leaf, h_tilde, noise, equaliser, of_leaf)

        return jax.tree_util.tree_map_with_path(one, stacked)

    def stream(self, sending: Sending) -> _SymbolStream:
        """Leaf by leaf, without any knowledge of the others."""
        return _SymbolStream(self, sending)


class _SymbolStream:
    kappa = None

    def __init__(self, transport: _Symbols, sending: Sending) -> None:
        self._transport, self._sending = transport, sending

    def __call__(self, name: str, rows: Float[np.ndarray, "users ..."]) -> Powers | None:
        h_tilde, noise, equaliser = self._sending.channel()
        stacked = {name: jax.device_put(rows)}
        received = self._transport(stacked, h_tilde, noise, equaliser, self._sending.key)
        rows[...] = received[name]
        return None  # the errors of symbols have no variance that the receiver knows


@dataclass(frozen=True)
class Analogue(_Symbols):
    """Two parameters per symbol, neither quantised nor sliced: mean squared error rms_q^2 mu_q.

    What arrives is the receiver's biased MMSE estimate, ``(1 - mu_q) tau_q`` plus noise.
    """

    cancellation: str = "genie"
    """What SIC subtracts: the true symbols (`genie`), or the receiver's own (`decisions`)."""
    uses: ClassVar[float] = 0.5
    size = None
    clip = None


@dataclass(frozen=True)
class Qam(_Symbols):
    """Uncoded QAM: one parameter per symbol, quantised to log2 `size` bits and Gray-mapped."""

    size: int = 64
    """Size of the constellation: 4, 16, 64 or 256."""
    cancellation: str = "genie"
    """What SIC subtracts: the true symbols (`genie`), or the receiver's own (`decisions`)."""
    clip: float | None = None
    """Range of the quantiser in units of the rms; by default the best for a Gaussian."""
    uses: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        modem.bits_per_symbol(self.size)
        if self.clip is not None:
            require_positive("clip", self.clip)


@partial(jax.jit, static_argnums=0)  # compiled once per shape
def _sent(
    how: _Symbols,
    leaf: Float[Array, "users ..."],
    h_tilde: Complex[Array, "antennas all_users"],
    noise: ColouredNoise,
    equaliser: Equaliser,
    key: Key[Array, ""],
) -> Float[Array, "users ..."]:
    users, others = len(leaf), h_tilde.shape[1] - len(leaf)
    unit, rms = normalise(widened(leaf).reshape(users, -1))
    size = unit.shape[1]
    length = min(size, _BLOCK)
    blocks = jnp.pad(unit, ((0, 0), (0, -size % length))).reshape(users, -1, length)

    def send(numbered: tuple[Array, Array]) -> Array:
        number, mine = numbered
        of_block = jax.random.fold_in(key, number)
        rest = jax.random.normal(
            jax.random.fold_in(of_block, _OTHERS), (others, length), mine.dtype
        )
        received = link.send(
            jnp.concatenate([mine, rest]),
            h_tilde,
            noise,
            equaliser,
            of_block,
            cancellation=how.cancellation,
            modulation=how.size,
            clip=how.clip,
        )
        return received.parameters[:users]

    numbers = jnp.arange(blocks.shape[1], dtype=jnp.uint32)
    received = jax.lax.map(send, (numbers, blocks.swapaxes(0, 1)))
    parameters = received.swapaxes(0, 1).reshape(users, -1)[:, :size] * rms[:, None]
    return as_type_of(leaf, parameters.reshape(leaf.shape))


TRANSPORTS: Mapping[str, type] = MappingProxyType(
    by_name(Gaussian, Qam, Analogue, Sparse, Coded, Adapter)
)
"""Transports by the names that a command line has for them."""


def is_surrogate(transport: object) -> bool:
    """Whether a transport adds Gaussian errors to all parameters, so that sums need one draw."""
    return bool(getattr(transport, "surrogate", False))


def is_of_mse(transport: object) -> TypeGuard[MseTransport]:
    """Whether a transport needs only the users' MSE, and no channel (`MseTransport`)."""
    return bool(getattr(transport, "of_mse", False))


def channel_uses(
    transport: Transport | MseTransport,
    mse: Float[np.ndarray, " users"],
    air_uses: Float[np.ndarray, " users"],
    shapes: Shapes,
    share: float = 1.0,
) -> Float[np.ndarray, " users"]:
    """Channel uses per parameter of each user, all side information included.

    **Arguments:**

    - `air_uses`: how often a symbol is sent, for the `share` of parameters that are repeated.
    - `shapes`: of the leaves, by path, without the axis of users.
    """
    if not is_of_mse(transport):
        return transport.uses * air_uses
    return np.asarray(transport.uses_of(jnp.asarray(mse), shapes)) * (1 + (air_uses - 1) * share)


def get_transport(text: str | Transport | MseTransport) -> Any:
    """The transport that a text describes, over the channel or the MSE; a transport as is.

    **Raises:** `InputError` that names the nearest one, or the option.

    >>> get_transport("qam(size=16)")
    Qam(size=16, cancellation='genie', clip=None)
    """
    if not isinstance(text, str):
        return text
    return parse(text, TRANSPORTS, "transport")


def require_estimators(transport: object, estimators: tuple[Any, ...]) -> None:
    """Check that a transport's errors are as the estimators assume.

    **Raises:** `InputError` for one that assumes white errors (`white`) where they are not white.
    """
    if getattr(transport, "white", True):
        return
    for estimator in estimators:
        if getattr(estimator, "white", False):
            raise InputError(
                f"{described(estimator)} assumes white errors, and those of {described(transport)} "
                "are not: leave out one of them."
            )
