"""`rmtllmf predict`: the classes of images, by an image classifier on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from rmtllmf_jax.cli.help_text import Place
from rmtllmf_jax.cli.options import Cache, print_as_json, print_table
from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.runs.environment import default_cache, use_compilation_cache


@dataclass(kw_only=True)
class Predict:
    """Print the most probable classes of images, by a single-task model from `export`.

    Any Hugging Face ViTForImageClassification works as well.

    Examples: rmtllmf predict mnist-model digits/ seven.png;
    rmtllmf predict mnist-model digits/ --top 1 --json
    """

    directory: tyro.conf.Positional[Place]
    """The classifier: a Hugging Face directory, or a hub id."""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files, or folders of them, read in the order of their names."""
    top: int = 3
    """Maximum number of classes per image, the most probable first."""
    batch_size: int = 64
    """Images per step; affects only speed and memory."""
    json: bool = False
    """Print JSON and nothing else: per file an object of label and probability."""
    cache_dir: Cache = field(default_factory=default_cache)

    def run(self) -> None:
        """Run the sub-command."""
        require_at_least("--top", self.top, 1)
        require_at_least("--batch-size", self.batch_size, 1)
        files = [file for path in self.images for file in _files(path)]
        if not files:
            raise InputError("predict needs an image: a file, or a folder of image files.")
        use_compilation_cache(self.cache_dir)
        from rmtllmf_jax.evaluation import classify

        found = classify(self.directory, files, batch_size=self.batch_size)
        best = {str(file): found.best(i, self.top) for i, file in enumerate(files)}
        if self.json:
            print_as_json({file: dict(classes) for file, classes in best.items()})
            return
        rows = [
            [file if place == 0 else "", label, f"{100 * share:.1f} %"]
            for file, classes in best.items()
            for place, (label, share) in enumerate(classes)
        ]
        print_table(self.directory, ["image", "class", "probability"], rows)


def _files(path: Path) -> list[Path]:
    from rmtllmf_jax.data.sources.images import ENDINGS

    if not path.is_dir():
        return [path]
    return sorted(each for each in path.rglob("*") if each.suffix.lower() in ENDINGS)
