"""The cost of a model, from traces of its programs alone: parameters, operations and memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params
from jaxtyping import PyTree

from rmtllmf_jax.models.backbone import Backbone, abstract_params
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.pretrained import abstract_decoder
from rmtllmf_jax.models.shapes import CLIPShape, SiglipShape, SiglipTextShape, TextShape
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.models.siglip import text_tower, two_towers
from rmtllmf_jax.training.lora import Factors, Lora

if TYPE_CHECKING:
    from rmtllmf_jax.runs.inputs import SweepInputs


@dataclass(frozen=True, eq=False)
class Costs:
    """The cost of a model; nothing is compiled, computed or allocated.

    - `function`: of parameters and a batch, and of `frozen` if there is any; pure.
    - `params`: shapes and types of the parameters with respect to which it is differentiated.
    - `example`: shape and type of one input, without the batch axis.
    - `frozen`: shapes and types of what training leaves unchanged.
    """

    function: Callable[..., jax.Array]
    params: PyTree[jax.ShapeDtypeStruct]
    example: jax.ShapeDtypeStruct
    frozen: PyTree[jax.ShapeDtypeStruct] | None = None

    @property
    def samples(self) -> str:
        """What the inputs are called: images, or rows of tokens."""
        return "images" if self.example.dtype == jnp.uint8 else "rows"

    @property
    def parameters(self) -> int:
        """Number of parameters of the model, which is that of one task vector."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def bytes(self) -> int:
        """Bytes of the parameters."""
        return tree_bytes(self.params)

    @property
    def width(self) -> int:
        """Length of a feature."""
        return jax.eval_shape(self.function, self.params, _batch(self.example, 1)).shape[-1]

    def flops(self, *, training: bool = False) -> float:
        """Return the operations per example of a forward pass, or of value and gradient.

        Matrix products and convolutions, two operations per multiply-add: what XLA also counts
        (LayerNorm, softmax, activation) is below 1 % of a ViT-B/16. JAX's own `cost_analysis` of
        a lowered program gives nothing on GPUs and TPUs, and counts the body of a loop once.
        """
        return float(_flops(_traced(self, 1, training)))

    def temporaries(self, batch: int, *, training: bool) -> int:
        """Return the bytes that a batch takes besides the parameters, see `peak_bytes`.

        With `training`, for value and gradient: the stored activations and the gradients.
        """
        return peak_bytes(_traced(self, batch, training))


@lru_cache(maxsize=8)  # a plan asks for the same several times
def _traced(costs: Costs, batch: int, training: bool) -> Jaxpr:
    function = costs.function
    if training:
        function = jax.grad(lambda *given: costs.function(*given).sum())
    frozen = () if costs.frozen is None else (costs.frozen,)
    return jax.make_jaxpr(function)(costs.params, _batch(costs.example, batch), *frozen).jaxpr


def tower_costs(backbone: Backbone) -> Costs:
    """Return the costs of a backbone on raw images."""
    shape = backbone.module.shape
    image = jax.ShapeDtypeStruct((shape.image_size, shape.image_size, shape.channels), jnp.uint8)
    return Costs(backbone.features, abstract_params(backbone), image)


def decoder_costs(decoder: Decoder, length: int) -> Costs:
    """Return the costs of a decoder on rows of this many tokens."""
    row = jax.ShapeDtypeStruct((length,), jnp.int32)

    def logits(params: PyTree, tokens: Any) -> Any:
        return decoder.outputs(params, None, {"tokens": tokens})

    return Costs(logits, abstract_decoder(decoder), row)


def model_costs(model: SharedModel, length: int | None = None) -> Costs:
    """Return the costs of a model; for texts, on rows of this many tokens."""
    if isinstance(model, Decoder):
        assert length is not None
        return decoder_costs(model, length)
    return tower_costs(cast(Backbone, model))


def lora_costs(model: Costs, lora: Lora) -> Costs:
    """Return the costs of a LoRA's factors on a frozen model.

    **Raises:** `InputError` as `Lora.kernels`.
    """

    def adapted(factors: Factors, inputs: Any, base: PyTree) -> Any:
        return model.function(lora.applied(base, factors), inputs)

    return Costs(adapted, lora.shapes(model.params), model.example, model.params)


def row_length(inputs: SweepInputs) -> int | None:
    """Return the tokens per row of a sweep's samples, `None` for images."""
    some = inputs.data[0].test.take(np.arange(1)).arrays().inputs
    return some["tokens"].shape[1] if "tokens" in some else None


def text_costs(shape: TextShape | SiglipTextShape) -> Costs:
    """Return the costs of a text tower on padded texts."""
    module, text = text_tower(shape), jax.ShapeDtypeStruct((shape.positions,), jnp.int32)

    def features(params: PyTree, tokens: Any) -> Any:
        return module.apply({"params": params}, tokens)

    return Costs(features, _params(module, _batch(text, 1)), text)


def clip_bytes(shape: CLIPShape | SiglipShape) -> int:
    """Return the bytes of a whole CLIP or SigLIP, as downloaded."""
    size, tokens = shape.vision.image_size, jax.ShapeDtypeStruct((1, shape.text.positions), "int32")
    images = jax.ShapeDtypeStruct((1, size, size, shape.vision.channels), jnp.float32)
    return tree_bytes(_params(two_towers(shape), images, tokens))


def _params(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> PyTree[jax.ShapeDtypeStruct]:
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def _batch(example: jax.ShapeDtypeStruct, size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size, *example.shape), example.dtype)


def tree_bytes(tree: PyTree) -> int:
    """Return the bytes of all arrays of a tree, or of their shapes and types."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _flops(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [_flops(each) for each in jaxprs_in_params(equation.params)]
        branches = equation.primitive.name == "cond"
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * (max(inner) if branches else sum(inner)) + _products(equation)
    return total


def _products(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        shape = equation.invars[0].aval.shape
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * kernel.size // outputs
    return 0


def peak_bytes(jaxpr: Jaxpr) -> int:
    """Return the peak bytes alive at once in a program, without its inputs.

    An array lives from the equation that makes it to the last that reads it. XLA fuses and
    reorders: on a ViT-B/16 it allocates 4 % more for evaluation and 4 % less for training; small
    models differ by up to a factor of two. XLA on a CPU keeps everything despite `remat`, and
    computes bfloat16 in float32.
    """
    last = {var: at for at, each in enumerate(jaxpr.eqns) for var in _variables(each.invars)}
    last |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))
    alive: dict[Any, int] = {}
    peak = 0
    for at, equation in enumerate(jaxpr.eqns):
        before = sum(alive.values())
        made = {var: tree_bytes(var.aval) for var in equation.outvars}
        inner = [peak_bytes(each) for each in jaxprs_in_params(equation.params)]
        peak = max(peak, before + max([sum(made.values()), *inner]))
        alive |= made
        for var in [*equation.outvars, *_variables(equation.invars)]:
            if last.get(var, at) == at:
                alive.pop(var, None)
    return peak


def _variables(atoms: list[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]
