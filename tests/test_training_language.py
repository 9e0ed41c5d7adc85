"""Fine-tuning of a decoder on texts: steps, resumption, low-rank updates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_decoder import write_decoder

from rmtllmf_jax.data import JsonLines, PackedTexts, load_texts
from rmtllmf_jax.evaluation import NegativeLogLikelihood, evaluate, text_batches
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models import Decoder, load_decoder
from rmtllmf_jax.training import Recipe, finetune_decoder
from rmtllmf_jax.training.batches import epoch_batch
from rmtllmf_jax.training.lora import Lora

RECIPE = Recipe(steps=12, batch_size=4, learning_rate=1e-2, weight_decay=0.0, warmup=0.0)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, dict, PackedTexts]:
    folder = tmp_path_factory.mktemp("model")
    decoder, params = load_decoder(write_decoder(folder))
    path = folder / "t.jsonl"
    rows = [{"q": f"{number}", "a": "the end and the"} for number in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = JsonLines(path=path, prompt="{q}", template=" {a}")
    return decoder, params, load_texts(texts, folder, 16, folder)


def nats(task: tuple[Decoder, dict, PackedTexts], params: dict) -> float:
    decoder, _, texts = task
    return evaluate(NegativeLogLikelihood(), decoder, params, text_batches(texts, 4))


def test_steps_follow_the_mean_loss_of_what_counts(
    task: tuple[Decoder, dict, PackedTexts], tmp_path: Path
):
    """The first step by hand; a run that was stopped ends as one that was not."""
    decoder, base, texts = task
    one = Recipe(steps=1, batch_size=4, learning_rate=1e-2, weight_decay=0.0, warmup=0.0)
    found = finetune_decoder(decoder, base, texts, one, 0, tmp_path / "one")
    rows = epoch_batch(len(texts), 4, 0, 0)

    def loss(params: dict) -> jax.Array:
        given = jnp.asarray(texts.tokens[rows]), jnp.asarray(texts.segments[rows])
        logits = decoder.apply({"params": params}, *given)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, texts.following[rows])
        return (losses * texts.scored[rows]).sum() / texts.scored[rows].sum()

    gradient = jax.jit(jax.grad(loss))(base)
    optimiser = one.optimiser()
    change, _ = optimiser.update(gradient, optimiser.init(base), base)
    expected = leaves_by_path(optax.apply_updates(base, change))
    for path, leaf in leaves_by_path(found).items():
        # Adam's first step is the sign of the gradient, which rounding can turn where it is zero.
        close = np.isclose(leaf, expected[path], atol=1e-5)
        assert close.mean() > 0.99, path
    whole = finetune_decoder(decoder, base, texts, RECIPE, 0, tmp_path / "whole", every=5)
    assert nats(task, whole) < nats(task, base) - 1
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "5", resumed / "5")
    again = finetune_decoder(decoder, base, texts, RECIPE, 0, resumed, every=5)
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_low_rank_updates_leave_the_rest_as_it_is(
    task: tuple[Decoder, dict, PackedTexts], tmp_path: Path
):
    decoder, base, texts = task
    lora = Lora(rank=2, targets=("q_proj", "v_proj", "down_proj"))
    factors = finetune_decoder(decoder, base, texts, RECIPE, 0, tmp_path, lora=lora)
    tuned = lora.applied(base, factors)
    assert nats(task, tuned) < nats(task, base) - 0.1
    before, after = leaves_by_path(base), leaves_by_path(tuned)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == factors.keys()
    assert len(moved) == 3
