"""Options that several sub-commands share. No heavy import: `--help` must be instant."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from rmtllmf_jax.cli.help_text import Place
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.runs.environment import default_cache
from rmtllmf_jax.training.recipes import REALIGN

if TYPE_CHECKING:
    from pandas import DataFrame

    from rmtllmf_jax.runs import Run

Cache = Annotated[
    Path, tyro.conf.arg(help="Folder of decoded images and compiled programs, shared by all runs.")
]


def default_of(option: Field[Any]) -> Any:
    """Return a fresh default of a dataclass's field, `dataclasses.MISSING` if it must be given."""
    return option.default if option.default_factory is MISSING else option.default_factory()


MetricText = Annotated[
    str | None,
    tyro.conf.arg(
        help="Metric for scoring models: accuracy, soft_accuracy(temperature=1.0), cross_entropy "
        "or margin; for language models perplexity, negative_log_likelihood or bits_per_byte, or "
        "the former applied to next tokens. By default accuracy, or perplexity for language models."
    ),
]


def taken(options: object, by: Callable[..., Any]) -> dict[str, Any]:
    """Return the options that have the name of a parameter of a function or class."""
    return {
        name: getattr(options, name) for name in signature(by).parameters if hasattr(options, name)
    }


def print_as_json(value: Any) -> None:
    """Print a value as JSON, which has no infinity and no NaN: these are null."""

    def known(each: Any) -> Any:
        if isinstance(each, dict):
            return {key: known(item) for key, item in each.items()}
        if isinstance(each, list | tuple):
            return [known(item) for item in each]
        return None if isinstance(each, float) and not math.isfinite(each) else each

    print(json.dumps(known(value), indent=2, allow_nan=False))


def suggest(step: str) -> None:
    """Print, as the last line of a command, what to do with what it made."""
    note(f"Next: {step}")


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table of words in its first two columns and numbers in the others."""
    from rich.console import Console

    from rmtllmf_jax.report.sheet import Sheet
    from rmtllmf_jax.report.terminal import print_sheet

    print_sheet(Sheet(title, header, rows), Console())


@dataclass(kw_only=True)
class RunOptions:
    """The run folder that a command fills."""

    out: Path
    """Run folder: everything is stored there, and runs resume from it."""
    seed: int = 0
    """Root of all random numbers."""
    cache_dir: Cache = field(default_factory=default_cache)


@dataclass(kw_only=True)
class Relocated:
    """Where model and data of a run folder are now."""

    group: ClassVar[str] = "places"

    model: Place | None = None
    """Current location of the run's pretrained model, if it was moved since `finetune`."""
    data: Path | None = None
    """Current location of the run's images, or of the file of its text tasks, if they were moved
    since `finetune`."""
    cache_dir: Cache = field(default_factory=default_cache)

    def opened(self, folder: Path, tasks: tuple[str, ...] = (), **options: Any) -> Run:
        """Return a run folder with model and images where they are now.

        **Raises:** `InputError` as `open_run`.
        """
        from rmtllmf_jax.runs import open_run

        return open_run(
            folder, tasks, model=self.model, data=self.data, cache_dir=self.cache_dir, **options
        )


@dataclass(kw_only=True)
class Configured(Relocated):
    """A run folder, and a configuration of its results."""

    run_folder: tyro.conf.Positional[Path]
    """Run folder from `finetune` or `reproduce`; its heads and images are used."""
    configuration: tuple[str, ...] = ()
    """A configuration of results.parquet as NAME=VALUE, by the columns combination, scenario, axis,
    level, draw, seed, protection and rule; columns with a single value may be left out."""

    def swept(self) -> Run:
        """Return the run with the tasks of its last sweep, as configurations depend on them."""
        provenance = self.opened(self.run_folder).provenance or {}
        return self.opened(self.run_folder, tuple(provenance.get("tasks", ())))

    def rows(self, run: Run) -> DataFrame:
        """Return the results of the configuration.

        **Raises:** `InputError` if it is none of the run, or not the only one.
        """
        from rmtllmf_jax.sweep.configuration import find_configuration

        for text in self.configuration:
            if "=" not in text:
                raise InputError(f"--configuration: expected NAME=VALUE, got {text!r}.")
        return find_configuration(run, dict(text.split("=", 1) for text in self.configuration))


@dataclass(kw_only=True)
class ChannelOptions:
    """The channel and its receiver."""

    group: ClassVar[str] = "channel"

    preset: str = "paper"
    """Channel preset (paper, free_space, umi_nlos, uma_los), with options in brackets:
    'paper(users=12, antennas=32, fading=rician(9))'; matrices(h.npy), your own channels; or the
    errors themselves, one per user: mse=.01,.02,... or snr_db=10,12,... (with the scenarios clean
    and ideal only)."""
    receiver: Annotated[str, tyro.conf.arg(aliases=["--order"])] = "sic"
    """Receiver: sic (weakest_first), sic(strongest_first), lmmse (joint), matched_filter, unaware
    of the attacker, estimated(snapshots=128, shrinkage=oas), which measures the noise, powered
    (knows its power), projected(rank=2), sensed(angles=(0, 30)); these take another receiver as
    of=lmmse; and minimax. A decoding order alone means SIC in that order."""


@dataclass(kw_only=True)
class UplinkOptions(ChannelOptions):
    """The channel, and the noise on the parameters that it stands for."""

    group: ClassVar[str] = "channel"

    c0: float = -31.0
    """Parameter-domain SNR (dB) of a user with MSE 1: kappa = rms(tau) 10^(-c0/20)."""
    kappa: float | None = None
    """Noise scale: the standard deviation of the noise on every parameter at an MSE of 1, the same
    for all users; overrides --c0."""


@dataclass(kw_only=True)
class TransmissionOptions(UplinkOptions):
    """The channel, and how the task vectors are sent over it."""

    group: ClassVar[str] = "channel"

    error_model: str = "independent"
    """How the users' errors are correlated: independent (exact for MMSE-SIC), lmmse (with
    --receiver lmmse), equicorrelated=RHO, or noisy_reference (models differenced against one noisy
    base)."""
    transport: str = "gaussian"
    """What carries the task vectors: gaussian (errors of variance kappa^2 mu on the parameters), or
    symbols over the draw's channel: qam(size=64, cancellation=genie, clip=none), uncoded, one
    parameter per symbol; analogue, two per symbol. sparse(share=0.1) sends only the largest
    entries, coded(gap_db=3, plan=sum_rate) the best quantised ones at the rate of the link,
    adapter(rank=4) two factors of the query and value matrices. --c0 and --kappa apply to gaussian,
    sparse and adapter."""


@dataclass(kw_only=True)
class GridOptions:
    """Which cells a sweep covers."""

    group: ClassVar[str] = "grid"

    combinations: str = "all"
    """`all`, or the number of combinations of each size from 2 up."""
    sizes: tuple[int, ...] = ()
    """Numbers of tasks to fuse, up to the number of tasks there are; by default 2 to all."""
    scenarios: tuple[str, ...] = ("clean", "ideal", "strongest_user", "sum_rate")
    """Channel scenarios: clean (no channel), ideal (only thermal noise), and the attackers white,
    white_in_range, sum_rate, sum_rate_floor_aware, strongest_user, towards(user=0), min_max_rate,
    sum_mse, jammer(antennas=2, angles=(0, 30), covariance=worst) and guessed(of=sum_rate, csi=0.5).
    A plus sign adds a user that sends poison: 'ideal+sign_flip(user=0)',
    'clean+scaled(factor=10)'."""
    protections: tuple[str, ...] = ("none", "freeze", "realign", "r-mtllmf", "control")
    """Protections: none, freeze, realign, r-mtllmf, phy (the physical layer alone), holistic
    (both), control (the base model realigned without any task vector; added if another one
    realigns); or choices along the chain, joined by plus signs: a receiver, on the air once,
    repeat(times=2), harq(rounds=4), hop(bands=8) or schedule(groups=2), a transport, estimators
    shrink(per=leaf), reliability(alpha=0.5) and singular_values, and repairs from_base,
    reload(patterns=(...)) and realign(shots=5), as in
    'repeat(times=4)+sparse(share=0.15)+shrink+r-mtllmf'."""
    axis: str = ""
    """Levels that replace the preset's value: snr_db=0,5,10 (edge SNR), budget_db=10,20 (the
    attacker's power over the noise), mse=.01,.1 (every user's), users, antennas, k_factor_db,
    correlation or c0_db. The noise of a draw is the same at every level."""
    draws: int = 1
    """Channel realisations."""
    repaired_draws: int | None = None
    """Channel realisations with realigned models, which cost a hundred times as much as evaluation;
    by default all of --draws."""
    seeds: int = 1
    """Repetitions with different parameter noise and few-shot samples."""


@dataclass(kw_only=True)
class MergeOptions:
    """How the received task vectors are merged."""

    group: ClassVar[str] = "merging"

    rules: tuple[str, ...] = ("task_arithmetic",)
    """Merge methods, with options in brackets as in `rmtllmf fuse`: task_arithmetic, average, ties,
    dare, dare_ties, della, della_linear, breadcrumbs, consensus_ta, slerp (two tasks), multi_slerp,
    model_stock, tsv_merge, median, trimmed_mean, clipped_norm, layer_wise, lata, and those that use
    data: fisher, regmean (training images of each task) and adamerging (test images, without
    labels). With ties(density=[0.1, 0.2]), --scale validation also chooses the density."""
    scale: str = "power-law"
    """Merging coefficient: a number, power-law, 1/N or 1/sqrt(N) for N tasks, or validation (the
    best on validation samples)."""
    validation_samples: int = 200
    """Validation images (or rows of texts) per task for --scale validation; 0 means all."""
    statistics_samples: int = 128
    """Training images per task, without labels, for the merge methods fisher and regmean; 0 means
    all."""


@dataclass(kw_only=True)
class EvaluationOptions:
    """How models are scored."""

    group: ClassVar[str] = "evaluation"

    metric: MetricText = None
    eval_samples: int = 0
    """Test images (or rows of texts) per task; 0 means all."""


@dataclass(kw_only=True)
class RealignOptions:
    """How models are repaired, and what freezes."""

    group: ClassVar[str] = "realignment"

    shots: int = 10
    """Samples per class for realignment, or texts per task of a language model."""
    frozen: tuple[str, ...] = ()
    """Regular expressions that match the whole paths of the leaves that freeze and r-mtllmf take
    from the base model; by default class, position and patch embeddings and CLIP's pre-LayerNorm,
    or the token embeddings."""
    realign_steps: int = REALIGN.steps
    """Realignment steps."""
    realign_batch_size: int = REALIGN.batch_size
    """Images (or texts) per realignment step; the combination's tasks take turns."""
    realign_learning_rate: float = REALIGN.learning_rate
    """Peak learning rate of realignment."""
    control_learning_rate: float | None = None
    """Peak learning rate of the control, which is a fair rival only at its best rate; by default
    that of realignment."""


@dataclass(kw_only=True)
class SpeedOptions:
    """What changes speed and memory, and no result."""

    group: ClassVar[str] = "speed and memory"

    eval_batch_size: int = 128
    """Images (or rows of texts) per evaluation step; affects only speed and memory."""
    remat: bool = False
    """Save memory: recompute activations in the backward pass."""
    cells_at_once: int | None = None
    """Cells that a device computes side by side; by default as many as its memory holds, one on a
    CPU. Affects only speed and memory."""
    image_devices: int = 1
    """Devices that share the evaluation batches of a cell; the others take other cells."""


@dataclass(kw_only=True)
class SweepOptions(
    RunOptions,
    GridOptions,
    TransmissionOptions,
    MergeOptions,
    RealignOptions,
    EvaluationOptions,
    SpeedOptions,
):
    """Which cells a sweep covers, and what they depend on."""

    store: Place | None = None
    """Folder or URL (gs://..., s3://...) for finished cells; by default in the run folder. All
    processes of a sweep write there."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Additional places to report progress: tensorboard, wandb."""


@dataclass(kw_only=True)
class DryRunOptions:
    """What `--dry-run` prints, and for which machine."""

    group: ClassVar[str] = "dry run"

    dry_run: bool = False
    """Print what the run needs and costs (cells, files, memory, operations, hours, what is missing
    offline) on the devices found, and stop."""
    target: Annotated[str | None, tyro.conf.arg(name="for")] = None
    """With --dry-run: plan for another machine: h100, h200, a100, a100-40gb, rtx-4090, tpu-v4,
    tpu-v5e, tpu-v5p, tpu-v6e, or several devices of a kind (h100-8, tpu-v5e-8)."""
    tflops: float | None = None
    """With --dry-run and --memory: peak of a device in TFLOP/s, instead of --for."""
    memory: float | None = None
    """With --dry-run and --tflops: memory of a device in GB, instead of --for."""
    json: bool = False
    """With --dry-run: print JSON and nothing else, an object of cells (by scenario and protection),
    work (parts with their operations and hours), training and sweep (memory by part), files and
    needed (sizes), flops, disk, hours, devices and speed. Sizes are in bytes; null means
    unknown."""

    def require_dry_run(self) -> None:
        """Check that the options go together.

        **Raises:** `InputError` if they do not, or if they are given without `--dry-run`.
        """
        given: dict[str, Any] = {"--json": self.json or None, "--for": self.target}
        given |= {"--tflops": self.tflops, "--memory": self.memory}
        for option, value in given.items():
            if value is not None and not self.dry_run:
                raise InputError(f"{option} needs --dry-run; a run writes its results to --out.")
        if (self.tflops is None) != (self.memory is None):
            raise InputError("--tflops and --memory go together: give both, or --for.")
        if self.target is not None and self.tflops is not None:
            raise InputError("--for names a machine, --tflops and --memory describe one: not both.")

    @property
    def elsewhere(self) -> bool:
        """Whether the plan is for another machine than this one."""
        return self.target is not None or self.tflops is not None
