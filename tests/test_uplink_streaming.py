"""A link leaf by leaf, as files are sent: what arrives is what the chain in memory delivers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax import uplink
from rmtllmf_jax.channel import ONCE, Harq, Link, Repeat, SumRate, get_preset, get_receiver
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.uplink import (
    Adapter,
    Analogue,
    Coded,
    Qam,
    Reliability,
    Scaled,
    Shrink,
    SignFlip,
    SingularValues,
    Sparse,
    StreamedUplink,
    factors,
    is_of_mse,
)
from rmtllmf_jax.uplink.factors import factors_of
from rmtllmf_jax.uplink.keys import channel_key, noise_key

USERS = 3
SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.mlp.weight": (24, 16),
    "model.layers.0.mlp.bias": (16,),
    "model.layers.1.mlp.weight": (24, 16),
    "logit_scale": (),
    "nothing": (0, 3),
}
LINK = Link(get_preset("paper"), SumRate())
TARGETS = ("embed_tokens", "layers.[0-9]+.mlp")
PART = Repeat(3, patterns=(r"model\.embed.*",))


@pytest.fixture(scope="module")
def sent() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        name: (10.0**-place * random.standard_t(3, size=(USERS, *shape))).astype(np.float32)
        for place, (name, shape) in enumerate(SHAPES.items())
    }


def opened(how: StreamedUplink, sent: dict[str, np.ndarray]) -> Any:
    def leaves(what: str) -> Iterator[tuple[str, np.ndarray]]:
        assert what
        for name in sorted(sent):
            yield name, sent[name].copy()

    shapes = {name: leaf[0].shape for name, leaf in sent.items()}
    return how.opened(shapes, len(next(iter(sent.values()))), leaves)


def streamed(how: StreamedUplink, sent: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what arrives, leaves in an order of their own."""
    through = opened(how, sent)
    received = {name: leaf.copy() for name, leaf in sent.items()}
    for name in reversed(received):
        through(name, received[name])
    return received


def in_memory(how: StreamedUplink, sent: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Return what arrives by the functions for whole trees."""
    stacked: Any = {name: jnp.asarray(leaf) for name, leaf in sent.items() if leaf.size}
    for poison in how.poisons:
        stacked = poison(stacked)
    root = jax.random.key(how.seed)
    draw, noise = channel_key(root, how.draw), noise_key(root, how.draw)
    transport: Any = how.transport
    if not is_of_mse(transport):
        return transport(stacked, *how.link.filters(how.link.draw(draw), draw), noise)

    def mse_of(link: Link) -> jax.Array:
        return link.mse(draw)[:USERS]

    mse: Any = mse_of(how.link)
    planned = mse
    if (plan := getattr(transport, "plan", None)) is not None:
        planned = mse_of(replace(how.link, attack=plan))
    if getattr(how.link.air, "patterns", ()):
        once = mse_of(replace(how.link, air=ONCE))
        mse = {name: mse if "embed" in name else once for name in stacked}
    kappa = (
        jnp.full(USERS, how.kappa)
        if how.kappa is not None
        else uplink.kappa_from_c0(stacked, how.c0_db)
    )
    return uplink.deliver(stacked, mse, kappa, noise, transport, how.estimators, planned=planned)


@pytest.mark.parametrize(
    "how",
    [
        StreamedUplink(LINK),
        StreamedUplink(LINK, seed=3, draw=2, kappa=0.01, poisons=(SignFlip(1),)),
        StreamedUplink(replace(LINK, air=Harq(3)), estimators=(Shrink(), Reliability())),
        StreamedUplink(
            replace(LINK, receiver=get_receiver("lmmse")), estimators=(SingularValues(),), c0_db=0.0
        ),
        StreamedUplink(
            replace(LINK, air=PART), estimators=(Shrink(known=False), Reliability(1.0)), c0_db=0.0
        ),
        StreamedUplink(LINK, Sparse(0.15), (Shrink(),), (Scaled(0, 3.0),), c0_db=-10.0),
        StreamedUplink(replace(LINK, air=PART), Sparse(0.6), (Reliability(),)),
        StreamedUplink(LINK, Coded(), (Reliability(),)),
        StreamedUplink(LINK, Coded(uses=12.0, plan=SumRate(), margin_db=1.0, block=50)),
        StreamedUplink(LINK, Coded(block=10, expected=True)),
        StreamedUplink(LINK, Adapter(3, TARGETS), poisons=(SignFlip(2),)),
        StreamedUplink(LINK, Adapter(3, TARGETS), (Shrink(), Reliability()), kappa=0.02),
        StreamedUplink(LINK, Adapter(2, TARGETS, Sparse(0.4)), (Reliability(),), c0_db=-10.0),
        StreamedUplink(replace(LINK, air=Repeat(4)), Adapter(2, TARGETS, Coded(uses=8.0))),
        StreamedUplink(LINK, Qam(16)),
        StreamedUplink(replace(LINK, air=Repeat(2)), Analogue("decisions"), poisons=(Scaled(2),)),
        StreamedUplink(Link(get_preset("mse=.1,.2,.3,.4"))),
    ],
    ids=lambda how: f"{described(how.link.air)}+{described(how.transport)}",
)
def test_what_arrives_is_that_of_the_chain_in_memory(how: Any, sent: dict[str, np.ndarray]):
    found, expected = streamed(how, sent), in_memory(how, sent)
    elsewhere = isinstance(how.transport, Adapter) and jax.__version_info__ >= (0, 11)
    close = 2e-6 if elsewhere else 1e-6  # the jax of Python 3.12 rounds products otherwise
    for name, leaf in expected.items():
        atol = close * max(float(jnp.abs(leaf).max()), 1.0)
        np.testing.assert_allclose(found[name], leaf, rtol=0, atol=atol, err_msg=name)
    changed = sum(float(np.abs(found[name] - sent[name]).sum()) for name in sent)
    assert changed > 0.1


def test_the_facts_are_what_the_users_suffer_and_spend(sent: dict[str, np.ndarray]):
    facts = opened(StreamedUplink(replace(LINK, air=PART), kappa=0.5), sent).facts
    size = {name: leaf[0].size for name, leaf in sent.items()}
    share = size["model.embed_tokens.weight"] / sum(size.values())
    assert [user["uses"] for user in facts] == pytest.approx([1 + 2 * share] * USERS)
    expected = replace(LINK, air=PART).mse(channel_key(jax.random.key(0), 0))[:USERS]
    assert [user["mse"] for user in facts] == pytest.approx(expected.tolist(), rel=1e-5)
    assert [user["kappa"] for user in facts] == [0.5] * USERS
    assert list(opened(StreamedUplink(LINK, Qam()), sent).facts[0]) == ["mse", "uses"]


def test_the_uses_of_an_adapter_are_those_of_its_factors(sent: dict[str, np.ndarray]):
    facts = opened(StreamedUplink(replace(LINK, air=Repeat(2)), Adapter(3, TARGETS)), sent).facts
    sent_numbers = 3 * (40 + 16 + 2 * (24 + 16))
    size = sum(leaf[0].size for leaf in sent.values())
    assert [user["uses"] for user in facts] == pytest.approx([2 * sent_numbers / size] * USERS)


def test_factors_are_found_again_where_there_is_no_room_for_them(
    sent: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    how = StreamedUplink(LINK, Adapter(3, TARGETS, Sparse(0.4)))
    kept = streamed(how, sent)
    monkeypatch.setattr(factors, "_ROOM", 4 * 3 * (40 + 16) * USERS)
    for name, leaf in streamed(how, sent).items():
        np.testing.assert_array_equal(leaf, kept[name])


def test_a_large_matrix_of_a_low_rank_is_factored_soon(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    b, a = random.normal(size=(300, 5)), random.normal(size=(5, 260))
    matrix = ((b * [9, 7, 5, 3, 1]) @ a).astype(np.float32)
    full = matrix + 1e-3 * random.normal(size=matrix.shape).astype(np.float32)
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    sign = np.sign(np.take_along_axis(u, np.abs(u).argmax(axis=0)[None], axis=0))[0]
    sides, solve = [], factors._balanced

    def balanced(inner: Any, rank: int) -> Any:
        sides.append(inner.shape)
        return solve(inner, rank)

    monkeypatch.setattr(factors, "_balanced", balanced)
    for given, (rank, side) in (
        (matrix, (3, 128)),
        (matrix.T, (5, 128)),
        (full, (3, 260)),
    ):
        left, right = factors_of(np.ascontiguousarray(given), rank)
        assert sides[-1] == (side, 300)
        if side == 128:
            left, right = (left, right) if given is matrix else (right.T, left.T)
            root = np.sqrt(s[:rank]) * sign[:rank]
            np.testing.assert_allclose(left, u[:, :rank] * root, atol=1e-4)
            np.testing.assert_allclose(right, v[:rank] * root[:, None], atol=1e-4)


def test_a_reference_behind_the_users_is_not_sent(sent: dict[str, np.ndarray]):
    rows = np.concatenate([sent["model.layers.0.mlp.bias"], np.ones((1, 16), np.float32)])
    opened(StreamedUplink(LINK, kappa=1.0), sent)("model.layers.0.mlp.bias", rows)
    np.testing.assert_array_equal(rows[-1], 1)
    assert (rows[:-1] != sent["model.layers.0.mlp.bias"]).all()


@dataclass(frozen=True)
class Mine:
    """An estimator that does not say that it goes leaf by leaf."""

    stage: ClassVar[str] = "estimator"

    def __call__(self, received: Any, variance: Any, energy: Any, mse: Any) -> Any:
        return received


@dataclass(frozen=True)
class Whole:
    """A transport of one's own without `stream`."""

    uses: ClassVar[float] = 1.0

    def __call__(self, stacked: Any, h_tilde: Any, noise: Any, equaliser: Any, key: Any) -> Any:
        return stacked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimators": (Shrink("user"),)},
            r"shrink\(per=user\) needs all .*leaf by leaf",
        ),
        ({"estimators": (Mine(),)}, r"mine needs all leaves .*`by_leaf = True`"),
        ({"transport": Whole()}, r"the transport whole has no method `stream`"),
        (
            {"transport": Adapter(2), "estimators": (SingularValues(),)},
            r"singular_values assumes white errors, and those of adapter",
        ),
        ({"link": replace(LINK, air=PART), "transport": Adapter(2)}, r"protects some leaves"),
        ({"transport": Qam(), "estimators": (Shrink(),)}, r"shrink needs errors of known variance"),
        ({"link": replace(LINK, air=PART), "transport": Coded()}, r"protects some leaves"),
        ({"draw": -1}, r"draw must be"),
        ({"seed": 2**32}, r"seed must be"),
    ],
)
def test_what_needs_all_leaves_is_refused_by_name(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        StreamedUplink(**{"link": LINK, **options})


def test_what_does_not_fit_the_files_is_refused(sent: dict[str, np.ndarray]):
    with pytest.raises(InputError, match=r"3 models need as many users, and direct_preset.* has 2"):
        opened(StreamedUplink(Link(get_preset("mse=.1,.2"))), sent)
    elsewhere = replace(LINK, air=Repeat(2, patterns=("encoder/.*",)))
    with pytest.raises(InputError, match=r"no leaf matches 'encoder/\.\*'"):
        opened(StreamedUplink(elsewhere), sent)


def test_more_entries_than_are_counted_are_refused(sent: dict[str, np.ndarray]):
    how = StreamedUplink(LINK, Sparse(0.1))
    with pytest.raises(InputError, match=r"3,000,000,000 entries are more than are counted"):
        how.opened({"w": (3, 10**9)}, USERS, lambda what: iter(()))
