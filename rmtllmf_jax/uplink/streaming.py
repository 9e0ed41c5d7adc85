"""A link for task vectors in files, with one tensor at a time in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float64

from rmtllmf_jax.channel import ONCE, Link, Sent, mse_of
from rmtllmf_jax.channel.checks import require_within
from rmtllmf_jax.common.errors import (
    InputError,
    require_at_least,
    require_non_negative,
    require_seed,
)
from rmtllmf_jax.common.values import described
from rmtllmf_jax.fusion import matching_paths
from rmtllmf_jax.uplink.estimators import Estimator
from rmtllmf_jax.uplink.fitting import require_fitting
from rmtllmf_jax.uplink.gaussian import GAUSSIAN
from rmtllmf_jax.uplink.kappa import DEFAULT_C0_DB
from rmtllmf_jax.uplink.keys import channel_key, noise_key
from rmtllmf_jax.uplink.poison import Poison
from rmtllmf_jax.uplink.streams import Powers, Rows, Sending
from rmtllmf_jax.uplink.transports import (
    MseTransport,
    Transport,
    channel_uses,
    is_of_mse,
    require_estimators,
)
from rmtllmf_jax.uplink.vectors import Shapes

Leaves = Callable[[str], Iterator[tuple[str, Rows]]]


@dataclass(frozen=True)
class StreamedUplink:
    """A link and what is done along it, for task vectors that are read leaf by leaf.

    Model q of a merge is user q. Seed and draw are those of a sweep, and so are channel and MSE
    and, if leaves have the same names and shapes, what arrives. Given to `fusion.files`, which
    calls `opened`.

    **Raises:** `InputError` that names estimators, poisons and transports that need more than one
    leaf at a time.
    """

    link: Link
    transport: Transport | MseTransport = GAUSSIAN
    estimators: tuple[Estimator, ...] = ()
    poisons: tuple[Poison, ...] = ()
    c0_db: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1; sets kappa by the rms of what is sent."""
    kappa: float | None = None
    """Noise scale of all users, in place of `c0_db`."""
    seed: int = 0
    """Root of the channel and of the noise."""
    draw: int = 0
    """Which channel realisation."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done leaf by leaf."""
        require_seed("seed", self.seed)
        require_at_least("draw", self.draw, 0, 2**32 - 1)
        require_within("c0 in dB", self.c0_db, -120.0, 300.0)
        if self.kappa is not None:
            require_non_negative("kappa", self.kappa, 1e6)
        require_fitting(self.link, self.transport, self.estimators)
        require_estimators(self.transport, self.estimators)
        for value in (*self.estimators, *self.poisons):
            if not getattr(value, "by_leaf", False):
                raise InputError(
                    f"{described(value)} needs all leaves of a user at once, but files are read "
                    "leaf by leaf (it does not say `by_leaf = True`): leave it out."
                )
        if not hasattr(self.transport, "stream"):
            raise InputError(
                f"the transport {described(self.transport)} has no method `stream`, which sends "
                "leaf by leaf: take gaussian, sparse, coded, adapter, qam or analogue."
            )

    def require_users(self, models: int) -> None:
        """Check that there is a user for each of this many models.

        **Raises:** `InputError` if there are fewer.
        """
        preset = self.link.preset
        if models > preset.users:
            raise InputError(
                f"{models} models need as many users, and {described(preset)} has {preset.users}: "
                "take a preset with more, such as paper(users=16)."
            )

    def key(self) -> dict[str, Any]:
        """Return everything besides the task vectors that the received ones depend on."""
        link = self.link
        key = {
            "preset": described(link.preset),
            "attack": described(link.attack),
            "receiver": described(link.receiver),
            "air": described(link.air),
            "transport": described(self.transport),
            "estimators": [described(each) for each in self.estimators],
            "poisons": [described(each) for each in self.poisons],
            "seed": self.seed,
            "draw": self.draw,
        }
        if is_of_mse(self.transport):
            key |= {"c0_db": self.c0_db} if self.kappa is None else {"kappa": self.kappa}
        return key

    def opened(self, shapes: Shapes, users: int, leaves: Leaves) -> OpenedUplink:
        """Return the channel of the draw, ready to send leaves.

        **Arguments:**

        - `shapes`: of the leaves that are sent, by name, without the axis of users.
        - `users`: number of task vectors; that many of the channel's first users send them.
        - `leaves`: reads all of them, sorted by name, each time it is called; takes a few words
          that describe the purpose.

        **Raises:** `InputError` for fewer users than there are task vectors, or for patterns that
        no leaf matches.
        """
        return OpenedUplink(self, shapes, users, leaves)


class OpenedUplink:
    """The channel of one draw: called with the rows of a leaf, overwrites them with what arrives.

    `facts` gives the users' errors and the channel uses that they spend.
    """

    def __init__(self, how: StreamedUplink, shapes: Shapes, users: int, leaves: Leaves) -> None:
        how.require_users(users)
        self._how, self._users, self._leaves, self._shapes = how, users, leaves, dict(shapes)
        root = jax.random.key(how.seed)
        self._draw = channel_key(root, how.draw)
        self._mse, self._air_uses = self._over(how.link)
        patterns = getattr(how.link.air, "patterns", ())
        self._patterns = [re.compile(pattern) for pattern in patterns]
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        protected = matching_paths(sizes, patterns) if patterns else set(sizes)
        self._share = sum(sizes[name] for name in protected) / sum(sizes.values())
        sending = Sending(
            users=users,
            shapes=self._shapes,
            leaves=self._sent,
            mse=self._mse_of,
            all_mse=self._mse,
            planned=lambda plan: self._over(replace(how.link, attack=plan))[0],
            channel=lambda: self._channel,
            kappa=self._kappa,
            key=noise_key(root, how.draw),
        )
        transport: Any = how.transport
        self._stream = transport.stream(sending)

    @property
    def facts(self) -> list[dict[str, float]]:
        """MSE, channel uses per parameter and, for Gaussian errors, kappa of each user."""
        how = self._how.transport, self._mse, self._air_uses, self._shapes, self._share
        uses = channel_uses(*how)
        found = {"mse": self._mse, "uses": uses, "kappa": self._stream.kappa}
        there = {name: values for name, values in found.items() if values is not None}
        return [
            dict(zip(there, map(float, values), strict=True))
            for values in zip(*there.values(), strict=True)
        ]

    def __call__(self, name: str, rows: Rows) -> None:
        """Send a leaf of all users: `rows` are overwritten with what the base station receives."""
        rows = rows[: self._users]  # what else there is, such as a reference, is not sent
        if not rows.size:
            return
        self._poison(rows)
        powers = self._stream(name, rows)
        if powers is None:
            return
        for estimator in self._how.estimators:
            step = 1 if getattr(estimator, "by_user", False) else self._users
            for first in range(0, self._users, step):
                part = slice(first, first + step)
                some = Powers(*(each[part] for each in powers))
                rows[part] = _estimated(estimator, rows[part], some, self._mean_mse[part])

    def _over(self, link: Link) -> tuple[Float[np.ndarray, " users"], ...]:
        errors, uses = _sent_over(link, self._draw)
        return np.asarray(mse_of(errors))[: self._users], np.asarray(uses)[: self._users]

    @cached_property
    def _channel(self) -> tuple[Any, ...]:
        link = self._how.link
        return link.filters(link.draw(self._draw), self._draw)

    @cached_property
    def _once(self) -> Float[np.ndarray, " users"]:
        return self._over(replace(self._how.link, air=ONCE))[0]

    def _mse_of(self, name: str) -> Float[np.ndarray, " users"]:
        protected = not self._patterns or any(each.fullmatch(name) for each in self._patterns)
        return self._mse if protected else self._once

    @cached_property
    def _mean_mse(self) -> Float[np.ndarray, " users"]:
        """The users' MSE over all leaves."""
        if not self._patterns:
            return self._mse
        return self._share * self._mse + (1 - self._share) * self._once

    def _kappa(
        self, mean_squares: Callable[[], Float64[np.ndarray, " users"]]
    ) -> Float[np.ndarray, " users"]:
        if self._how.kappa is not None:
            return np.full(self._users, self._how.kappa, np.float32)
        scale = 10.0 ** (-self._how.c0_db / 20)
        return (np.sqrt(mean_squares()) * scale).astype(np.float32)

    def _sent(self, what: str) -> Iterator[tuple[str, Rows]]:
        for name, rows in self._leaves(what):
            if rows.size:
                self._poison(rows)
                yield name, rows

    def _poison(self, rows: Rows) -> None:
        for poison in self._how.poisons:
            rows[...] = poison({_LEAF: jax.device_put(rows)})[_LEAF]


_LEAF = "leaf"


@partial(jax.jit, static_argnums=0)
def _sent_over(link: Link, key: Array) -> Sent:
    return link.sent(key)


@partial(jax.jit, static_argnums=0)  # once per shape, not per name
def _estimated(estimator: Estimator, rows: Array, powers: Powers, mse: Array) -> Array:
    variance, energy = ({_LEAF: each} for each in powers)
    received: Array = estimator({_LEAF: rows}, variance, energy, mse)[_LEAF]
    return received
