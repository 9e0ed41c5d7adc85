"""Everything besides the grid that a cell's numbers depend on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rmtllmf_jax.channel import (
    NO_ATTACK,
    ONCE,
    Attack,
    Link,
    Matrices,
    Preset,
    Receiver,
    Sic,
    get_preset,
    get_receiver,
)
from rmtllmf_jax.channel.checks import require_within
from rmtllmf_jax.common.errors import (
    InputError,
    require_at_least,
    require_known,
    require_non_negative,
    require_seed,
)
from rmtllmf_jax.common.values import described
from rmtllmf_jax.defences.protection import Protection, Stages, named, stages_of
from rmtllmf_jax.defences.repairs import EMBEDDINGS, Realign, Reload, Repair
from rmtllmf_jax.evaluation.batches import even_batch
from rmtllmf_jax.evaluation.known import get_metric
from rmtllmf_jax.evaluation.metrics import Metric
from rmtllmf_jax.fusion import SCALES
from rmtllmf_jax.sweep.program import numerics
from rmtllmf_jax.training.recipes import REALIGN, Recipe
from rmtllmf_jax.uplink import (
    DEFAULT_C0_DB,
    GAUSSIAN,
    MseTransport,
    Transport,
    get_error_model,
    get_transport,
    is_of_mse,
    is_surrogate,
    parse_error_model,
)
from rmtllmf_jax.uplink.fitting import require_filters, require_fitting

SCALE_RULES = (*SCALES, "validation")
LARGEST = 1e6
"""Of kappa, scale and learning rates: squares of what they give together stay finite in float32."""


@dataclass(frozen=True)
class Settings:
    """Options of a sweep; two sweeps with different settings never share results."""

    preset: str | Preset = "paper"
    """Channel preset, `matrices(h.npy)`, or the users' errors: `mse=.01,.02`, `snr_db=10,12`."""
    receiver: str | Receiver = "sic"
    """Receiver, or its description, see `channel.get_receiver`."""
    error_model: str = "independent"
    """How the errors of different users are correlated, see `uplink.parse_error_model`."""
    transport: str | Transport | MseTransport = "gaussian"
    """What carries the task vectors, or its description, see `uplink.get_transport`."""
    scale: str = "power-law"
    """Merging coefficient: a number, or one of `SCALE_RULES`."""
    c0_db: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1; sets kappa for each user."""
    kappa: float | None = None
    """Noise scale of the parameters, the same for all users; overrides c0."""
    metric: str | Metric = "accuracy"
    """What models are scored by, or its description, see `evaluation.get_metric`."""
    eval_samples: int = 0
    """Test images per task; 0 is all."""
    validation_samples: int = 200
    """Validation images per task for the scale rule `validation`; 0 is all."""
    statistics_samples: int = 128
    """Training images per task for merge methods that look at data, without labels; 0 is all."""
    shots: int = 10
    """Samples per class for realignment, or texts per task."""
    frozen: tuple[str, ...] = EMBEDDINGS
    """Leaves that `freeze` and `r-mtllmf` take from the base and keep: regular expressions that
    match whole paths."""
    eval_batch_size: int = 128
    """Images a step of evaluation, at most: batches are evened out."""
    seed: int = 0
    """Root of all random numbers of the sweep."""
    realign: Recipe = REALIGN
    control_learning_rate: float | None = None
    """Peak learning rate of the control, a rival only at its own best; `None` is that of
    `realign`."""

    def __post_init__(self) -> None:
        """Refuse numbers that no sweep can use."""
        require_at_least("eval samples", self.eval_samples, 0)
        require_at_least("validation samples", self.validation_samples, 0)
        require_at_least("statistics samples", self.statistics_samples, 0)
        require_at_least("shots", self.shots, 1)
        require_at_least("eval batch size", self.eval_batch_size, 1)
        require_seed("seed", self.seed)
        if self.kappa is not None:
            require_non_negative("kappa", self.kappa, LARGEST)
        require_within("c0 in dB", self.c0_db, -20 * math.log10(LARGEST), 300.0)
        require_non_negative("realign learning rate", self.realign.learning_rate, LARGEST)
        if self.control_learning_rate is not None:
            require_non_negative("control learning rate", self.control_learning_rate, LARGEST)
        images = self.realign.steps * self.realign.batch_size  # a table of them is made a cell
        require_at_least("realign steps times realign batch size", images, 1, 2**27)
        self._check_scale()
        Reload(self.frozen)
        parse_error_model(self.error_model)
        get_receiver(self.receiver)
        get_transport(self.transport)
        get_metric(self.metric)

    def _check_scale(self) -> None:
        try:
            value = float(self.scale)
        except ValueError:
            require_known("scale", self.scale, SCALE_RULES)
        else:
            require_non_negative("scale", value, LARGEST)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Settings:
        """Return the settings from a record of `asdict` that was stored as JSON.

        **Raises:** `TypeError` for a record of another version.
        """
        made = dict(record)
        made["frozen"] = tuple(made["frozen"])
        made["realign"] = Recipe(**made["realign"])
        return cls(**made)

    def root(self, seed: int) -> int:
        """Return the root of the random numbers of a repetition.

        **Raises:** `InputError` if it is more than a key can hold.
        """
        return require_seed("the sum of --seed and --seeds, less one,", self.seed + seed)

    def stages(self, protection: str | Protection) -> Stages:
        """Return a protection by its stages; a named one has the settings' own options.

        **Raises:** `InputError` for an unknown name.
        """
        reload, realign = Reload(self.frozen), Realign.by(self.realign, self.shots)
        rate = self.control_learning_rate
        control = realign if rate is None else replace(realign, learning_rate=rate)
        return stages_of(protection, named(reload, realign, control))

    def repairs(self, protection: str | Protection) -> tuple[Repair, ...]:
        """Return the repairs of a protection, see `stages`."""
        return self.stages(protection).repairs

    @property
    def receiving(self) -> Receiver:
        """The receiver."""
        return get_receiver(self.receiver)

    @property
    def transporting(self) -> Transport | MseTransport:
        """The transport."""
        return get_transport(self.transport)

    def channel(self, tasks: int) -> Preset:
        """Return the channel preset.

        **Raises:** `InputError` if the preset is unknown or has fewer users than there are tasks,
        or if receiver, error model or transport do not fit it.
        """
        preset = get_preset(self.preset)
        if tasks > preset.users:
            raise InputError(
                f"{tasks} tasks need as many users; the channel preset {self.preset!r} has "
                f"{preset.users}."
            )
        Link(preset, NO_ATTACK, self.receiving)
        if not is_of_mse(self.transporting):
            self._require_symbols(preset)
        if self.error_model == "lmmse":
            _require_correlations(preset, self.receiving)
        else:
            get_error_model(self.error_model, tasks)
        return preset

    def link(self, preset: Preset, attack: Attack, stages: Stages) -> Link:
        """Return the link of the users of a configuration."""
        return Link(preset, attack, stages.receiver or self.receiving, stages.air or ONCE)

    def carrier(self, stages: Stages) -> Transport | MseTransport:
        """Return the transport of the task vectors of a configuration."""
        return stages.transport or self.transporting

    def require_fitting(self, link: Link, stages: Stages) -> None:
        """Check that a protection works over a link.

        **Raises:** `InputError` for values along the chain that cannot be combined.
        """
        transport = self.carrier(stages)
        require_fitting(link, transport, stages.estimators)
        symbols = not is_of_mse(transport)
        if not symbols and not is_surrogate(transport) and self.error_model != "independent":
            raise InputError(
                f"the error model {self.error_model} describes the errors of the transport "
                f"gaussian, and {described(transport)} has its own: leave one out."
            )
        if stages.estimators and self.error_model == "noisy_reference":
            raise InputError(
                f"{described(stages.estimators[0])} takes errors of variance kappa^2 mu, and those "
                "of the error model noisy_reference have another: leave one out."
            )

    def _require_symbols(self, preset: Preset) -> None:
        """Refuse options of the surrogate together with a transport that sends symbols."""
        name = described(self.transporting)
        require_filters(Link(preset, NO_ATTACK, self.receiving), self.transporting)
        given = {
            "error model": self.error_model != "independent",
            "kappa": self.kappa is not None,
            "c0": self.c0_db != DEFAULT_C0_DB,
        }
        for what in (what for what, there in given.items() if there):
            raise InputError(
                f"the {what} describes the errors of the transport gaussian, and those of {name} "
                "follow from its symbols: leave it out."
            )

    def batch_size(
        self, tests: Sequence[int], validations: Sequence[int], image_devices: int = 1
    ) -> int:
        """Return the images per evaluation batch, within `eval_batch_size`, see `even_batch`.

        **Arguments:** test and validation images of every task, and the devices that share a batch.
        """
        limits = [(self.eval_samples, count) for count in tests]
        if self.scale == "validation":
            limits += [(self.validation_samples, count) for count in validations]
        counts = [min(limit or count, count) for limit, count in limits if count]
        return even_batch(counts, self.eval_batch_size, image_devices)

    def key(self) -> dict[str, Any]:
        """Return what the numbers depend on, ready for `content_hash`."""
        values = asdict(self)
        del values["eval_batch_size"]  # a knob of speed, not of meaning
        values["receiver"] = described(self.receiving)
        values["metric"] = described(get_metric(self.metric))
        preset = get_preset(self.preset)
        if preset is self.preset or isinstance(preset, Matrices):  # a file may change
            values["preset"] = described(preset)
        values["error_model"] = parse_error_model(self.error_model)
        if self.frozen == EMBEDDINGS:
            values["frozen"] = EMBEDDINGS[:2]  # finished cells are older than language models
        if self.control_learning_rate is None:  # finished cells are older than these two choices
            del values["control_learning_rate"]
        if self.transporting == GAUSSIAN:
            del values["transport"]
        else:
            values["transport"] = described(self.transporting)
        values["numerics"] = numerics()
        return values


def _require_correlations(preset: Preset, receiver: Receiver) -> None:
    """Refuse a link with errors other than those of the error model `lmmse`."""
    if not preset.has_channel:
        raise InputError(
            "the error model 'lmmse' is that of a receiver over a channel, and a direct preset of "
            "mse or snr_db has none: use equicorrelated=RHO or another error model."
        )
    if isinstance(receiver, Sic):
        raise InputError(
            "the error model 'lmmse' belongs to the joint LMMSE receiver, but this one cancels "
            f"users one by one ({receiver.order}), which leaves their errors uncorrelated: use the "
            "error model independent, or the receiver lmmse."
        )
