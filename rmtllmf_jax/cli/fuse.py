"""`rmtllmf fuse`: checkpoints on disk merged tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from rmtllmf_jax.cli.link import LinkOptions
from rmtllmf_jax.cli.options import default_of, print_table, suggest
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.extras import MissingExtra, needed_by
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.runs.folder import working_in

if TYPE_CHECKING:
    from rmtllmf_jax.fusion.files.fusing import Fusing
    from rmtllmf_jax.fusion.files.merging import LayerWeights
    from rmtllmf_jax.fusion.files.plan import Plan, Recipe
    from rmtllmf_jax.fusion.files.variation import Variation

PLOT = "layer_weights.png"
_SHOWN = 8


@dataclass(kw_only=True)
class Fuse(LinkOptions):
    """Merge fine-tuned checkpoints with their base into a directory that transformers opens.

    Any safetensors checkpoints: CLIP, ViT, language models. Tensors are read one by one, so memory
    does not grow with the model. The same command resumes after an interruption.

    Example: rmtllmf fuse --base base --models a b --method ties --scale 0.3 --out merged
    """

    recipe: tyro.conf.Positional[Path | None] = None
    """A recipe instead of the other options: the options in YAML, the fusion.json of an output, or
    a mergekit file; it can be combined with --out and --dry-run."""
    base: Path | None = None
    """The model that the others were fine-tuned from: a Hugging Face directory or hub id
    (owner/name or owner/name@revision), whose configuration and tokenizer go into the output; or a
    safetensors file, or an index of shards."""
    models: tuple[Path, ...] = ()
    """The fine-tuned models, each a directory, a hub id, a file or an index; or a LoRA adapter for
    the base, as the directory that PEFT saved."""
    out: Path | None = None
    """The directory to write; it must not exist."""
    method: str = "task_arithmetic"
    """Merge method, options in brackets: task_arithmetic, average, ties(density=0.2,
    normalise=true), dare(drop=0.9), dare_ties(drop=0.9, normalise=false), della(density=0.5,
    epsilon=0.15, rescale=probability, normalise=true), della_linear(density=0.5, epsilon=0.15,
    rescale=probability) with l1 or none, breadcrumbs(density=0.9, gamma=0.01),
    consensus_ta(ratio=0.4, agree=2), slerp(t=0.5, threshold=0.9995) of two models, multi_slerp,
    model_stock, tsv_merge, median, trimmed_mean(trim=1), a number of models or a share below 0.5,
    layer_wise(layers={'model.layers.0': 0.5, 'lm_head': 1}, default=none, granularity=block) with
    default the weight of all other layers, or lata(weighting=linear, sigma=0.5,
    granularity=block) with logarithmic or threshold, and tensor or
    layers(pattern='.*?stage[0-9]+'), what an expression matches of a name; and with --statistics
    fisher(floor=1e-06) and regmean(off_diagonal=0.9, ridge=1e-06, input_axis=none). All take
    weights=(1, 0.5), one number per model."""
    options: tuple[str, ...] = ()
    """The method's options as NAME=VALUE, as in earlier versions; prefer brackets."""
    scale: str | None = None
    """Merging coefficient: a number, power-law, 1/N or 1/sqrt(N). By default 1 for a single model,
    otherwise power-law, which is 1 for methods that average (average, ties, della, slerp,
    multi_slerp, model_stock, tsv_merge, median, trimmed_mean, fisher, regmean). A negative
    coefficient makes the model forget."""
    reference: Path | None = None
    """For lata: the model whose difference from the base is the reference for the layers (the
    instruct model if the base is pretrained). By default, for each model, the mean of the other
    task vectors."""
    statistics: tuple[Path, ...] = ()
    """For fisher and regmean: the files written by `rmtllmf statistics`, one per model, in the
    order of --models."""
    only: tuple[str, ...] = ()
    """Merge only tensors whose whole names match one of these regular expressions, such as
    'vision_model.*'; the others are taken from the base."""
    from_base: tuple[str, ...] = ()
    """Take matching tensors from the base, such as 'classifier.*' if heads differ; those that the
    base lacks are left out."""
    tokenizer: str | None = None
    """The output's vocabulary if models have tokens that the base lacks: base, union (all tokens),
    or one of the models. Embedding rows are matched by token, not by number."""
    accept: tuple[str, ...] = ()
    """Fields of config.json that may differ although they change the meaning of weights, such as
    rope_theta; the output has the base's values."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Type of the merged tensors in the output; keep means the base's type, tensor by tensor."""
    as_adapter: int | None = None
    """Write a LoRA adapter of this rank, which PEFT opens on the base, instead of a whole model;
    the share of the merged vector that it keeps is printed for each tensor."""
    shard_size: str = "5GB"
    """Largest size of an output file, such as 5GB or 500MiB."""
    carry_code: bool = False
    """Also copy the base's *.py files, which trust_remote_code runs, into the output."""
    hash_inputs: bool = True
    """Write the SHA-256 of the input files into the card. With --no-hash-inputs every file is read
    once less, which saves time where few cores merge, or where the inputs exceed the memory."""
    dry_run: bool = False
    """Only print what would be merged: every tensor with its shape, type, size and method."""

    def run(self) -> None:
        """Run the sub-command."""
        if self.recipe is None:
            self._run(())
            return
        from rmtllmf_jax.cli.recipe import BESIDE, read_recipe

        for option in fields(self):
            given = getattr(self, option.name)
            if option.name not in BESIDE and given != default_of(option):
                name = option.name.replace("_", "-")
                raise InputError(
                    f"--{name}: the other options are in the recipe; change {self.recipe}, or "
                    "leave it out."
                )
        command, variations = read_recipe(self.recipe, type(self))
        out = command.out if self.out is None else self.out
        replace(command, out=out, dry_run=self.dry_run)._run(variations)

    def _run(self, variations: tuple[Variation, ...]) -> None:
        from rmtllmf_jax.cli.recipe import recipe_of
        from rmtllmf_jax.fusion.files.fusing import fusing, part_folder
        from rmtllmf_jax.fusion.files.plan import bytes_of, plan_fusion
        from rmtllmf_jax.models.hub import safetensors_place

        out, base, recipe = self.out, self.base, self._recipe(variations)
        if base is None or out is None:
            raise InputError(f"fuse needs {'--base' if base is None else '--out'}, or a recipe.")
        plan = plan_fusion(
            out,
            safetensors_place(base),
            [safetensors_place(model) for model in self.models],
            recipe,
            reference=None if self.reference is None else safetensors_place(self.reference),
            shard_bytes=bytes_of(self.shard_size),
            carry_code=self.carry_code,
            transfer=self.uplink(len(self.models)),
            statistics=self.statistics,
        )
        if self.dry_run:
            print("\n".join(_listing(plan)))
            return
        with working_in(part_folder(out)), fusing(plan, self.hash_inputs) as under_way:
            if under_way.restarted:
                note(f"{under_way.root}: was of other inputs or options; starting again.")
            elif under_way.finished:
                total = len(plan.shards)
                note(f"{under_way.finished} of {total} shards are finished already.")
            weights = under_way.layer_weights()
            plot = None if weights is None else _show_weights(weights, under_way)
            under_way.merge(weights)
            energies = under_way.facts()["energy"]
            record = recipe_of(self, out, variations, recipe.method, recipe.scale)
            under_way.finish(weights, plot, record)
            arrived = under_way.arrived
        for user in arrived:
            told = ", ".join(f"{name} {value:.4g}" for name, value in list(user.items())[1:])
            note(f"uplink of {user['model']}: {told}")
        for line in (*plan.notes, *([plan.code] if plan.code else [])):
            note(line)
        if energies:
            _show_energy(energies)
        print(f"{out}: {_summary(plan)}")
        suggest(_opening(out, self.as_adapter is not None))

    def _recipe(self, variations: tuple[Variation, ...]) -> Recipe:
        from rmtllmf_jax.common.values import parse
        from rmtllmf_jax.fusion.files.matching import Parts
        from rmtllmf_jax.fusion.files.plan import Recipe, require_method
        from rmtllmf_jax.fusion.rules import METHODS
        from rmtllmf_jax.fusion.scale import scale_of

        method = parse(_with_pairs(self.method, self.options), METHODS, "method")
        require_method(method, bool(self.statistics))
        default = "1" if len(self.models) == 1 else "power-law"
        scale = scale_of(
            default if self.scale is None else self.scale, len(self.models) or 1, method
        )
        parts = Parts(self.only, self.from_base)
        return Recipe(
            method,
            scale,
            self.seed,
            self.dtype,
            parts,
            self.tokenizer,
            self.accept,
            self.as_adapter,
            variations,
        )


def _with_pairs(method: str, pairs: tuple[str, ...]) -> str:
    """Return a method's text with the options of NAME=VALUE pairs."""
    options = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--options: expected NAME=VALUE, got {pair!r}.")
        if name == "weights":
            value = f"({value},)"
        options.append(f"{name}={value}")
    return f"{method}({', '.join(options)})" if options else method


def _show_weights(weights: LayerWeights, under_way: Fusing) -> str | None:
    """Print the weights by layer as a table, and draw them beside the weights of the model.

    Returns the name of the figure, `None` if the packages that draw it are not installed.
    """
    from collections import Counter

    from rmtllmf_jax.common.files import write_bytes
    from rmtllmf_jax.fusion.layers import layers_of

    plan = under_way.plan
    rows = {layer: [float(weight) for weight in row] for layer, row in weights.items()}
    method: Any = plan.recipe.method
    tensors = Counter(layers_of(plan.matching.merged, method.granularity).values())
    title = f"Weights by layer: {plan.recipe.name}"
    lines = [
        [layer, str(tensors[layer]), *(f"{weight:.3f}" for weight in row)]
        for layer, row in rows.items()
    ]
    print_table(title, ["layer", "tensors", *plan.names], lines)
    try:
        with needed_by("drawing them"):
            from rmtllmf_jax.report.style import image_bytes
            from rmtllmf_jax.report.vector_figures import layer_weights_figure
    except MissingExtra as error:
        note(f"no figure of the weights: {error}")
        return None
    figure = layer_weights_figure(rows, plan.names, title)
    write_bytes(under_way.folder / PLOT, image_bytes(figure, dpi=150))
    return PLOT


def _show_energy(energies: dict[str, list[float]]) -> None:
    """Print the share of the merged vector that an adapter holds, and where most is lost."""
    from rmtllmf_jax.fusion.files.fusing import energy_kept

    shares = energy_kept(energies)
    assert shares is not None
    lost = sorted(energies, key=lambda key: energies[key][0] - energies[key][1])
    rows = [[key, f"{shares['tensors'][key]:.2%}"] for key in lost[:_SHOWN]]
    print_table("Energy of the merged vector in the adapter", ["tensor", "kept"], rows)
    note(f"the adapter has {shares['overall']:.4%} of the merged vector's energy.")


def _opening(out: Path, adapter: bool) -> str:
    """Return how an output is opened."""
    if adapter:
        return f"PeftModel.from_pretrained(BASE_MODEL, {str(out)!r}) of peft opens it on its base."
    if (out / "config.json").is_file():
        return f"AutoModel.from_pretrained({str(out)!r}) of transformers opens it."
    return f"safetensors.numpy.load_file({str(next(out.glob('*.safetensors')))!r}) reads it."


def _summary(plan: Plan) -> str:
    size = sum(shard.size for shard in plan.shards)
    count = len(plan.shards)
    return (
        f"{plan.formula}; {len(plan.matching.merged)} tensors merged, "
        f"{len(plan.matching.copied)} copied, {size / 1e9:.3f} GB in {_files(count)}"
    )


def _files(count: int) -> str:
    return f"{count} file{'s' if count > 1 else ''}"


def _listing(plan: Plan) -> Iterator[str]:
    """Yield the lines of a dry run: every tensor of every file, then the inputs and the sum."""
    for shard in plan.shards:
        rows = [
            (
                tensor.base.key,
                "x".join(map(str, tensor.base.shape)) or "scalar",
                tensor.dtype
                if tensor.dtype == tensor.base.dtype
                else (f"{tensor.base.dtype}->{tensor.dtype}"),
                f"{tensor.size:,}",
                plan.recipe.name if tensor.merged else "from the base",
            )
            for tensor in shard.tensors
        ]
        widths = [max(len(row[place]) for row in rows) for place in range(4)]
        yield f"{shard.name} ({shard.size:,} bytes)"
        for key, shape, dtype, size, how in rows:
            yield (
                f"  {key:<{widths[0]}}  {shape:>{widths[1]}}  {dtype:<{widths[2]}}  "
                f"{size:>{widths[3]}}  {how}"
            )
    for checkpoint in (plan.base, *plan.others):
        count = len(checkpoint.files)
        yield f"reads {checkpoint.given}: {checkpoint.size:,} bytes in {_files(count)}"
    if plan.transfer is not None:
        how = ", ".join(f"{key} {value}" for key, value in plan.transfer.key().items() if value)
        yield f"receives the task vectors over an uplink: {how}"
    yield from plan.notes
    if plan.code:
        yield plan.code
    yield f"holds {plan.held:,} bytes of tensors at a time"
    yield f"would write {plan.out}: {_summary(plan)}"
