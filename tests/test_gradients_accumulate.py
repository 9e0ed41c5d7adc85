"""The accumulated sum against the plain one: all derivatives, and the memory that they take."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.gradients.accumulate import accumulated_sum

pytestmark = pytest.mark.usefixtures("x64")


def term(parameters: Any, constants: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(parameters["a"] @ x + parameters["b"]) ** 2 * constants)


def numbers() -> tuple[dict, jax.Array, jax.Array]:
    """Parameters, constants and five terms."""
    rng = np.random.default_rng(0)
    parameters = {"a": jnp.asarray(rng.normal(size=(4, 3))), "b": jnp.linspace(-1.0, 1.0, 4)}
    return parameters, jnp.arange(1.0, 5.0), jnp.asarray(rng.normal(size=(5, 3)))


def accumulated(parameters: Any) -> jax.Array:
    _, constants, xs = numbers()
    return accumulated_sum(term, parameters, constants, xs)


def plain(parameters: Any) -> jax.Array:
    _, constants, xs = numbers()
    return sum(term(parameters, constants, x) for x in xs)


def assert_close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected
    )


Function = Callable[[Any], Any]


def along(function: Function) -> Function:
    """Value and derivative along the parameters themselves."""
    return lambda parameters: jax.jvp(function, (parameters,), (parameters,))


def of_one_leaf(function: Function) -> Function:
    """The gradient in one leaf, the other held: its tangent is a symbolic zero."""

    def gradient(parameters: Any) -> Any:
        return jax.grad(lambda a: function({**parameters, "a": a}))(parameters["a"])

    return gradient


def mapped(derive: Callable[[Function], Function]) -> Callable[[Function], Function]:
    def over(function: Function) -> Function:
        return lambda parameters: jax.vmap(derive(function))(
            jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), parameters)
        )

    return over


DERIVE: dict[str, Callable[[Function], Function]] = {
    "value": lambda function: function,
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "grad of one leaf": of_one_leaf,
    "jvp": along,
    "forward over reverse": jax.hessian,
    "reverse over reverse": lambda function: jax.jacrev(jax.jacrev(function)),
    "forward over forward": lambda function: jax.jacfwd(jax.jacfwd(function)),
    "vmap": mapped(lambda function: function),
    "vmap of grad": mapped(jax.grad),
    "vmap of jvp": mapped(along),
    "grad of vmap": lambda function: jax.grad(lambda p: jnp.sum(mapped(lambda f: f)(function)(p))),
}


SLOW = {"forward over forward", "vmap of jvp", "grad of vmap"}


def some_slow(names: Iterable[str], slow: Container[str] = SLOW) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names]


@pytest.mark.parametrize("name", some_slow(DERIVE))
def test_derivatives_of_the_sum(name: str):
    parameters, _, _ = numbers()
    derive = DERIVE[name]
    assert_close(
        *(jax.jit(derive(function))(parameters) for function in (jax.jit(accumulated), plain))
    )


@pytest.mark.parametrize("name", ["value", "value_and_grad", "jvp"])
def test_derivatives_without_jit(name: str):
    parameters, _, _ = numbers()
    assert_close(DERIVE[name](accumulated)(parameters), DERIVE[name](plain)(parameters))


def outer(factor: jax.Array, constants: tuple, x: jax.Array) -> jax.Array:
    """A term that is a sum again, of terms that the outer parameter moves."""
    parameters, rest, xs = constants
    moved = jax.tree.map(lambda leaf: leaf * factor * x[0], parameters)
    return accumulated_sum(term, moved, rest, xs)


@pytest.mark.parametrize(
    "name",
    some_slow(["grad", "reverse over reverse", "value", "jvp", "vmap of grad"], {"jvp", "value"}),
)
def test_a_sum_of_sums(name: str):
    parameters, constants, xs = numbers()

    def nested(factor: jax.Array) -> jax.Array:
        return accumulated_sum(outer, factor, (parameters, constants, xs), xs)

    def flat(factor: jax.Array) -> jax.Array:
        return sum(
            plain(jax.tree.map(lambda leaf, x=x: leaf * factor * x[0], parameters)) for x in xs
        )

    derive = DERIVE[name]
    assert_close(*(jax.jit(derive(function))(jnp.asarray(0.7)) for function in (nested, flat)))


@pytest.mark.parametrize("derive", [jax.grad, along, lambda f: jax.jit(jax.grad(f))])
@pytest.mark.parametrize("which", ["constants", "xs"])
def test_derivatives_in_what_is_constant_are_refused(derive: Callable, which: str):
    parameters, constants, xs = numbers()

    def moved(given: jax.Array) -> jax.Array:
        rest = (given, xs) if which == "constants" else (constants, given)
        return accumulated_sum(term, parameters, *rest)

    with pytest.raises(InputError, match="derivatives only in its parameters"):
        derive(moved)(constants if which == "constants" else xs)


def test_a_constant_that_moves_beside_the_parameters_is_refused():
    parameters, constants, xs = numbers()
    with pytest.raises(InputError, match="derivatives only in its parameters"):
        jax.grad(lambda s: accumulated_sum(term, {**parameters, "b": s}, s * constants, xs))(
            parameters["b"]
        )


def wide(parameters: jax.Array, constants: jax.Array, x: jax.Array) -> jax.Array:
    """A term with activations to keep: much more of them than of parameters."""
    hidden = x
    for _ in range(4):
        hidden = jnp.tanh(hidden @ parameters)
    return jnp.sum(hidden * constants)


def accumulated_over(terms: int) -> Callable[[jax.Array], jax.Array]:
    xs = jnp.ones((terms, 256, 16))
    return lambda parameters: accumulated_sum(wide, parameters, jnp.ones(16), xs)


def scanned_over(terms: int) -> Callable[[jax.Array], jax.Array]:
    def total(parameters: jax.Array) -> jax.Array:
        def add(sum_so_far: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return sum_so_far + wide(parameters, jnp.ones(16), x), None

        return jax.lax.scan(add, jnp.zeros(()), jnp.ones((terms, 256, 16)))[0]

    return total


def temporary_bytes(function: Callable[[jax.Array], jax.Array]) -> int:
    lowered = jax.jit(jax.grad(function)).lower(jnp.eye(16))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_of_a_gradient_does_not_grow_with_the_terms():
    """The terms' own data are counted by neither, and the activations by the plain scan alone."""
    few, many = (temporary_bytes(accumulated_over(terms)) for terms in (4, 64))
    plain_few, plain_many = (temporary_bytes(scanned_over(terms)) for terms in (4, 64))
    activations = 256 * 16 * 8
    assert plain_many - plain_few > 60 * 3 * activations
    assert many - few < activations
    assert many < plain_many / 10


def of_pixels(parameters: jax.Array, constants: jax.Array, pixels: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh((pixels / 255.0) @ parameters) * constants)


def of_draw(parameters: jax.Array, pixels: jax.Array, scale: jax.Array) -> jax.Array:
    return accumulated_sum(of_pixels, parameters * scale, jnp.ones(16), pixels)


def test_memory_of_a_gradient_does_not_grow_with_what_the_terms_share():
    """Images as numbers follow from constants alone: no loop over draws keeps those of all."""

    def needed(batches: int) -> int:
        def total(parameters: jax.Array, pixels: jax.Array) -> jax.Array:
            return accumulated_sum(of_draw, parameters, pixels, jnp.arange(3.0))

        pixels = jnp.ones((batches, 256, 16), jnp.uint8)
        compiled = jax.jit(jax.grad(total)).lower(jnp.eye(16), pixels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(64) - needed(4) < 256 * 16 * 8
