"""Continuations by language models of the beginnings of a few test texts, for human readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
from jaxtyping import PyTree

from rmtllmf_jax.data.texts.beginnings import Beginning, beginnings
from rmtllmf_jax.data.texts.task import TextData
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.generation import generate
from rmtllmf_jax.models.text import end_tokens
from rmtllmf_jax.sweep.configuration import job_of, model_of
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.run import Rows

PROMPTS = 3  # of each task
MOST = 64  # tokens that are said
MORE = 8  # tokens that may be said beyond the length of the text itself


def said_rows(engine: Engine, tokenizer: Any, results: Rows) -> Rows:
    """Return continuations of the same prompts before and after fine-tuning, fusion and repair.

    All tasks of the largest combination (the first, of several) are fused, in the first draw and
    seed, with one model per merge method, scenario and protection. Decoding is greedy.

    **Arguments:**

    - `engine`: of the sweep that made the `results`; its models are decoders of text.
    """
    rows = _shown(pd.DataFrame(results))
    tasks = tuple(rows["combination"].iloc[0].split("+"))
    decoder = cast(Decoder, engine.inputs.model)
    data = dict(zip(engine.inputs.tasks, cast(tuple[TextData, ...], engine.inputs.data)))
    prompts = [
        Prompt(task, number, beginning)
        for task in tasks
        for number, beginning in enumerate(
            beginnings(data[task].test, PROMPTS, seed=engine.settings.seed)
        )
    ]
    first = {"rule": rows["rule"].iloc[0], "scenario": "clean"}
    whole = first | {"protection": "as in the test split"}
    found = [whole | prompt.row(tokenizer, prompt.text.rest) for prompt in prompts]
    for named, params, own in _models(engine, rows, tasks):
        for prompt, text in zip(prompts, _continued(decoder, params, tokenizer, prompts)):
            if prompt.task in own:
                found.append(first | named | prompt.row(tokenizer, text))
    return found


@dataclass(frozen=True)
class Prompt:
    """The beginning of the `number`-th test text of a task."""

    task: str
    number: int
    text: Beginning

    def row(self, tokenizer: Any, said: Sequence[int]) -> dict[str, Any]:
        """Return its continuation as a row of the table."""
        given, text = (
            tokenizer.decode(list(tokens), skip_special_tokens=True)
            for tokens in (self.text.given, said)
        )
        return {"task": self.task, "number": self.number, "given": given, "text": text}


def _continued(
    decoder: Decoder, params: PyTree, tokenizer: Any, prompts: Sequence[Prompt]
) -> list[list[int]]:
    """Return the most probable tokens after each prompt."""
    longest = max(len(prompt.text.rest) for prompt in prompts)
    room = decoder.shape.positions - max(len(prompt.text.given) for prompt in prompts)
    given = [prompt.text.given for prompt in prompts]
    count = min(longest + MORE, MOST, room)
    return generate(decoder, params, given, count, end=end_tokens(tokenizer))


def _shown(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the models that are shown."""
    rows = results[results["size"] == results["size"].max()]
    for name in ("combination", "draw", "seed"):
        rows = rows[rows[name] == rows[name].iloc[0]]
    along = rows["axis"] != ""
    return rows[~along | (rows["level"] == rows["level"].min())]


def _models(
    engine: Engine, rows: pd.DataFrame, tasks: tuple[str, ...]
) -> Iterator[tuple[dict[str, str], PyTree, tuple[str, ...]]]:
    """Yield the models with their names, and the tasks of the prompts that they are given."""
    yield {"protection": "base"}, engine.inputs.base, tasks
    for task in tasks:
        params = engine.inputs.finetuned(engine.inputs.tasks.index(task))
        yield {"protection": "fine-tuned"}, params, (task,)
    names = ["rule", "scenario", "protection"]
    for values, own in rows.groupby(names, sort=False):
        yield dict(zip(names, values)), model_of(engine, job_of(own)), tasks
