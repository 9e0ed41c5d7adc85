"""Packages that only some sub-packages need, and the extras that install them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lazy_loader

from rmtllmf_jax.common.errors import InputError

EXTRAS = {
    "pipeline": (
        *("flax", "orbax-checkpoint", "transformers", "huggingface-hub", "pillow", "scikit-learn"),
        *("scikit-image", "pyarrow", "pandas", "fsspec", "matplotlib"),
    ),
    "hub": ("datasets",),
    "tfds": ("tensorflow-datasets", "array-record"),
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
    "gcs": ("gcsfs",),
    "s3": ("s3fs",),
    "siglip": ("sentencepiece", "protobuf"),
    "cuda12": ("jax-cuda12-plugin",),
    "cuda13": ("jax-cuda13-plugin",),
    "tpu": ("libtpu",),
}
"""Optional packages, by the extra that installs them: `pip install 'rmtllmf-jax[pipeline]'`."""

_MODULES = {  # where a package's module has another name
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "scikit-image": "skimage",
    "protobuf": "google.protobuf",
}
_EXTRA_OF = {
    _MODULES.get(package, package.replace("-", "_")): extra
    for extra, packages in EXTRAS.items()
    for package in packages
} | {"tokenizers": "pipeline"}  # which comes with transformers


class MissingExtra(InputError, ImportError):
    """A package that one of this package's extras installs is not there; the message names both."""

    by_name = False
    """Whether it says no more than which name was asked for: a command knows what for."""


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Say which extra to install where a module of one is missing.

    **Raises:** `MissingExtra`, in place of `ModuleNotFoundError` or what a library makes of it, for
    modules of `EXTRAS`.
    """
    try:
        yield
    except ImportError as error:
        told = isinstance(error, MissingExtra) and not error.by_name
        if told or (module := _lacking(error)) is None:
            raise
        extra = _EXTRA_OF[module]
        missing = MissingExtra(
            f"{what} needs the package {module}, which is not installed: "
            f"pip install 'rmtllmf-jax[{extra}]'."
        )
        missing.name = module
        raise missing from error


def _lacking(error: BaseException | None) -> str | None:
    """Return the module of `EXTRAS` that an error, or one that caused it, did not find."""
    while error is not None:
        if isinstance(error, (ModuleNotFoundError, MissingExtra)) and error.name:
            name = f"{error.name}."
            for module in _EXTRA_OF:
                if name.startswith(f"{module}.") or f"{module}.".startswith(name):
                    return module
        error = error.__cause__
    return None


def attach(
    package: str, file: str
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a sub-package that loads at its first use.

    What it offers stands in its stub, the file of the same name that ends in `.pyi`. A name whose
    module needs a package that is not installed raises `MissingExtra`.
    """
    load, names, offered = lazy_loader.attach_stub(package, file)

    def get(name: str) -> object:
        try:
            with needed_by(f"{package}.{name}"):
                return load(name)
        except MissingExtra as error:
            error.by_name = True
            raise

    return get, names, offered
