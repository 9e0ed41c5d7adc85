"""What the users of a text run folder share, and what each of them has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.files import file_hash
from rmtllmf_jax.data.samples import Samples
from rmtllmf_jax.data.tasks import validate_tasks
from rmtllmf_jax.data.texts.sets import TEXT_SETS, text_tasks
from rmtllmf_jax.data.texts.task import TextData, load_text_task
from rmtllmf_jax.evaluation.batches import batches_of
from rmtllmf_jax.evaluation.language import NegativeLogLikelihood, evaluate
from rmtllmf_jax.fusion import require_same_structure
from rmtllmf_jax.models.checkpoint import weights_hash
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.decoder_configs import read_decoder_config
from rmtllmf_jax.models.export import export_decoder
from rmtllmf_jax.models.hub import local_directory
from rmtllmf_jax.models.pretrained import load_decoder
from rmtllmf_jax.models.text import tokenizer_hash
from rmtllmf_jax.runs.config import compute_dtype, place_of

_ROWS = 16  # a batch of validation


@dataclass(frozen=True)
class TextRunConfig:
    """The settings that all users of texts share; artefact names are hashes of them."""

    model: str
    """Directory or hub id of the pretrained decoder."""
    model_hash: str
    """SHA-256 of its weights."""
    tokenizer: str
    """Hash of the files of its tokenizer."""
    tower: str
    """`Decoder.fingerprint`: what else logits depend on."""
    data: str
    """The set of tasks: a name of `data.texts.sets.TEXT_SETS`, or a file."""
    length: int
    """Tokens per row."""
    validation_fraction: float
    """Share of the training texts that stands in for a missing validation or test part."""
    seed: int
    dtype: str = "float32"
    """Compute type, one of `models.shapes.DTYPES`."""

    metric: ClassVar[str] = "perplexity"
    """What models are scored by, unless a command says otherwise."""
    samples: ClassVar[str] = "rows"
    """What the samples are called."""

    def key(self) -> dict[str, Any]:
        """Return what the numbers depend on: contents, not locations."""
        values = asdict(self)
        del values["model"], values["data"]
        return values

    def load_model(self, remat: bool = False) -> tuple[Decoder, PyTree]:
        """Return the decoder and its pretrained parameters.

        **Raises:** `InputError` as `load_decoder`.
        """
        return load_decoder(self.model, dtype=self.dtype, remat=remat)

    def load_tasks(
        self, names: Iterable[str], cache_dir: Path, *, quiet: bool = True
    ) -> tuple[TextData, ...]:
        """Return the texts of tasks, through the cache of tokens.

        Unless `quiet`, a note says which parts of a task are taken from its training texts.

        **Raises:** `InputError` for an unknown task, or texts that cannot be read.
        """
        known = {task.name: task for task in text_tasks(self.data)}
        how: Any = {"share": self.validation_fraction, "seed": self.seed, "quiet": quiet}
        return tuple(
            load_text_task(known[name], self.model, self.length, cache_dir, **how)
            for name in validate_tasks(names, known)
        )

    def require_data(self) -> None:
        """Check that the set of tasks is where it was.

        **Raises:** `InputError` if it is not.
        """
        if self.data not in TEXT_SETS and not Path(self.data).exists():
            raise InputError(
                f"{self.data}: no such file; the run's text tasks were there: give the new place "
                "with --data."
            )

    def require_same_model(self, model: Decoder) -> None:
        """Check that the users were trained with this configuration and tokenizer.

        **Raises:** `InputError` if they are not.
        """
        directory = local_directory(self.model)
        found = model.fingerprint, tokenizer_hash(directory)
        if found != (self.tower, self.tokenizer):
            raise InputError(
                f"{directory}: its configuration or its tokenizer is another than when the run was "
                "fine-tuned from it; put the files back, or run `rmtllmf finetune` again."
            )

    def load_like(self, directory: str, model: Decoder, base: PyTree) -> PyTree:
        """Return the parameters of another model of this architecture and tokenizer.

        **Raises:** `InputError` if it is not.
        """
        other, params = load_decoder(directory)
        require_same_structure(base, params, ("the run's model", directory))
        same = tokenizer_hash(local_directory(directory)) == self.tokenizer
        if not same or other.fingerprint != model.fingerprint:
            raise InputError(
                f"{directory}: its configuration or its tokenizer is not that of the run's model."
            )
        return params

    def export(self, folder: Path, params: PyTree, classifier: Any = None) -> None:
        """Write parameters as a directory that transformers opens.

        **Raises:** `InputError` as `export_decoder`, or for a classifier, which is for images.
        """
        if classifier is not None:
            raise InputError("a classifier needs images, but this run is of texts.")
        export_decoder(folder, self.model, params)


@dataclass(frozen=True)
class TextUserRecord:
    """One task's fine-tuned model, relative to the run folder, and what it reached."""

    finetuned: str
    recipe: dict[str, Any]
    texts: dict[str, str]
    """Fingerprints of the parts of the task."""
    base_nats: dict[str, float]
    """Nats per token of the base model on the validation and the test part."""
    finetuned_nats: dict[str, float]
    """Those of the fine-tuned model."""
    finetuned_sha256: str = ""

    @classmethod
    def of(cls, content: dict[str, Any]) -> TextUserRecord:
        """Return the record in JSON data.

        **Raises:** `TypeError` if it is not one.
        """
        return cls(**content)

    @property
    def reached(self) -> str:
        """The outcome of fine-tuning, in words."""
        before, after = self.base_nats, self.finetuned_nats
        each = (f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in before)
        return f"nats per token (base -> fine-tuned): {', '.join(each)}"

    def hashes(self, run: Path) -> dict[str, str]:
        """Return the checksum of the fine-tuned model."""
        return {"finetuned": self.finetuned_sha256 or file_hash(run / self.finetuned)}

    def require_same(self, task: Any) -> None:
        """Check that a task's texts are those used for fine-tuning.

        **Raises:** `InputError` if they are not.
        """
        if task.fingerprints() != self.texts:
            raise InputError(
                f"task {task.name!r}: these are other texts than the run was fine-tuned on; name "
                "the place of the run's own with --data, or run `rmtllmf finetune` again."
            )


def configure_texts(
    model: str,
    texts: str,
    *,
    length: int = 256,
    dtype: str = "auto",
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> TextRunConfig:
    """Return the configuration of a new run of texts.

    **Arguments:** `texts`: a set of tasks, see `data.texts.sets`; `length`: tokens per row.

    **Raises:** `InputError` for an invalid option or a missing model.
    """
    directory = local_directory(model)
    shape = read_decoder_config(directory / "config.json")
    require_at_least("--length", length, 2, min(shape.positions, shape.window or shape.positions))
    return TextRunConfig(
        model=place_of(model),
        model_hash=weights_hash(directory),
        tokenizer=tokenizer_hash(directory),
        tower=Decoder(shape).fingerprint,
        data=texts if texts in TEXT_SETS else str(Path(texts).expanduser().absolute()),
        length=length,
        validation_fraction=validation_fraction,
        seed=seed,
        dtype=compute_dtype(dtype),
    )


def nats(decoder: Decoder, params: PyTree, rows: Samples) -> float:
    """Return the mean negative log-likelihood of a part of a task, per counted token.

    **Raises:** `InputError` if nothing counts, or if the logits are not finite.
    """
    batches = batches_of(rows, min(_ROWS, len(rows)))
    return evaluate(NegativeLogLikelihood(), decoder, params, batches)
