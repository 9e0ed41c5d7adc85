"""Activations are those of transformers, values and derivatives, in every precision."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import known_to_xla

from rmtllmf_jax.models.activations import ACTIVATIONS

X = np.linspace(-9, 9, 1801)
TOLERANCES = {"float32": 5e-6, "float64": 1e-13}
# As users compile: the quick generator of the tests has another tanh.
AS_USERS = {"xla_backend_optimization_level": 3}
if known_to_xla(("xla_cpu_use_fusion_emitters",)):  # jaxlib before 0.12
    AS_USERS["xla_cpu_use_fusion_emitters"] = True


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_derivatives_are_those_of_torch(name: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    activations = pytest.importorskip("transformers.activations")
    theirs = torch.tensor(X, dtype=getattr(torch, dtype), requires_grad=True)
    values = activations.ACT2FN[name](theirs)
    values.sum().backward()
    with jax.enable_x64(dtype == "float64"):
        both = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))
        ours, derivatives = jax.jit(both, compiler_options=AS_USERS)(jnp.asarray(X, dtype))
    assert ours.dtype == derivatives.dtype == dtype
    tolerance = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    np.testing.assert_allclose(ours, values.detach().numpy(), **tolerance)
    smooth = X != 0  # where relu bends, the two choose differently
    np.testing.assert_allclose(derivatives[smooth], theirs.grad.numpy()[smooth], **tolerance)


def test_gelu_in_bfloat16_is_the_rounded_one() -> None:
    """Half precision would lose what is left of ``1 + erf``."""
    x = jnp.asarray(X, jnp.bfloat16)
    found = ACTIVATIONS["gelu"](x)
    assert found.dtype == jnp.bfloat16
    exact = ACTIVATIONS["gelu"](x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found.astype(jnp.float32), exact.astype(jnp.float32))


def test_gelu_has_second_derivatives() -> None:
    with jax.enable_x64(True):
        ours, theirs = (
            jax.vmap(jax.grad(jax.grad(gelu)))(jnp.asarray(X))
            for gelu in (ACTIVATIONS["gelu"], partial(jax.nn.gelu, approximate=False))
        )
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
