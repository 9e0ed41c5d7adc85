"""What the attacks that know the users' Gram matrix share: checks, and `from_gram`."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Real

from rmtllmf_jax.channel.checks import require_channel, require_hermitian, require_powers
from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.values import name_of

Power = Float[Array, " users"] | None


class Informed:
    """An attack that knows the users' channels to the last digit."""

    title: ClassVar[str]
    """Its name in figures."""
    reference: ClassVar[str] = ""
    chooses: ClassVar[str] = ""
    """The discrete choice that it makes by the received powers; both calls take `power` then."""
    full_rank: ClassVar[bool] = False
    """Whether it is defined for linearly independent channels only."""

    def __call__(
        self,
        h_tilde: Complex[Array, "antennas users"],
        budget: Real[ArrayLike, ""],
        noise: Real[ArrayLike, ""] = 1.0,
        power: Float[Array, " users"] | None = None,
    ) -> Complex[Array, "antennas antennas"]:
        """The attacker's own covariance, of trace `budget`.

        `noise` matters only to attacks that account for the floor. `power`: received powers on
        which a discrete choice is based, by default those of the channel.

        **Raises:** `InputError` for more users than antennas where the attack has no answer, and
        outside jit for a channel that is not finite, a negative budget or a noise that is not
        positive (inside: `channel.check_uplink`).

        >>> from rmtllmf_jax.channel.attacks import StrongestUser, White
        >>> h_tilde = jnp.array([[2.0 + 0j], [0.0]])
        >>> for attack in (White(), StrongestUser()):
        ...     attack(h_tilde, 6.0).real.tolist()
        [[3.0, 0.0], [0.0, 3.0]]
        [[6.0, 0.0], [0.0, 0.0]]
        """
        require_channel(h_tilde)
        require_powers(budget, noise)
        self._require_rank(h_tilde.shape[1], h_tilde.shape[0])
        real = jnp.real(h_tilde).dtype
        budget, noise = jnp.asarray(budget, real), jnp.asarray(noise, real)
        return self._covariance(h_tilde, budget, noise, power)

    def from_gram(
        self,
        gram: Complex[Array, "users users"],
        budget: Real[ArrayLike, ""],
        noise: Real[ArrayLike, ""] = 1.0,
        *,
        antennas: int,
        power: Float[Array, " users"] | None = None,
    ) -> Complex[Array, "users users"]:
        """The effective Gram matrix G = H~^H (C + noise I)^-1 H~, from K = H~^H H~ alone.

        **Raises:** `InputError` as for the covariance, and outside jit for a `gram` that is not
        Hermitian.

        >>> from rmtllmf_jax.channel.attacks import White
        >>> gram = jnp.diag(jnp.array([4.0 + 0j, 8.0]))
        >>> White().from_gram(gram, 16.0, antennas=16).real.tolist()
        [[2.0, 0.0], [0.0, 4.0]]
        """
        require_hermitian("gram", gram)
        require_powers(budget, noise)
        require_at_least("antennas", antennas, 1)
        self._require_rank(gram.shape[0], antennas)
        return _compiled(self, antennas, gram, budget, noise, power)

    def _covariance(self, h: Array, budget: Array, noise: Array, power: Power) -> Array:
        raise NotImplementedError

    def _gram(self, k: Array, budget: Array, noise: Array, antennas: int, power: Power) -> Array:
        raise NotImplementedError

    def _require_rank(self, users: int, antennas: int) -> None:
        if self.full_rank and users > antennas:
            raise InputError(
                f"the attack {name_of(self)!r} needs linearly independent channels, so not more "
                f"users than antennas; got {users} users and {antennas} antennas."
            )


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    attack: Informed, antennas: int, gram: Array, budget: Array, noise: Array, power: Power
) -> Array:
    return attack._gram(gram, budget, noise, antennas, power)
