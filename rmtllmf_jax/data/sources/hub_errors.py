"""Errors of the Hugging Face hub, explained with what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rmtllmf_jax.common.errors import InputError, first_line

OFFLINE_SETTINGS = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def explained(error: Exception, name: str, revision: str | None) -> InputError:
    """Return the `InputError` for what `datasets.load_dataset` raised about the data set `name`."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(_causes(error))

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if among(GatedRepoError) or "gated dataset" in str(error):
        return InputError(
            f"{name}: gated; its owner gives access to registered users only. Accept the terms on "
            "the set's page on the Hugging Face hub, then log in with `hf auth login` or HF_TOKEN."
        )
    # The hub's HTTP library has had two names (httpx, httpx2): match its errors by class name.
    transport = "TransportError" in {kind.__name__ for kind in type(error).__mro__}
    if transport or isinstance(error, (ConnectionError, TimeoutError, LocalEntryNotFoundError)):
        settings = [setting for setting in OFFLINE_SETTINGS if os.environ.get(setting)]
        why = f"{settings[0]} is set" if settings else "no connection"
        return InputError(
            f"{name}: neither in the cache of `datasets` nor to be reached on the Hugging Face hub "
            f"({why}). Download it where there is a connection and copy that cache, or copy the "
            "set's parquet files and use --source folder."
        )
    if among(RevisionNotFoundError):
        return InputError(f"{name}: has no revision {revision!r} on the Hugging Face hub.")
    if among(RepositoryNotFoundError) or isinstance(
        error, (DatasetNotFoundError, FileNotFoundError)
    ):
        return InputError(
            f"{name}: no such data set on the Hugging Face hub, or a private one. Check the id; "
            f"for a private one log in with `hf auth login` ({first_line(error)})."
        )
    if isinstance(error, DatasetGenerationError):
        return InputError(
            f"{name}: its files cannot be read ({first_line(causes[-1])}). Delete them from the "
            "cache and download them again."
        )
    if isinstance(error, HfHubHTTPError):
        return InputError(f"{name}: the Hugging Face hub refused ({first_line(error)}).")
    return InputError(f"{name}: cannot be loaded ({first_line(error)}).")


@contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Hide the progress bars of `datasets` and the hub unless standard error is a terminal."""
    import datasets
    from huggingface_hub import utils as hub

    datasets_hidden = datasets.utils.are_progress_bars_disabled()
    hub_hidden = hub.are_progress_bars_disabled()
    if sys.stderr.isatty() or (datasets_hidden and hub_hidden):
        yield
        return
    datasets.disable_progress_bars()
    hub.disable_progress_bars()
    try:
        yield
    finally:
        if not datasets_hidden:
            datasets.enable_progress_bars()
        if not hub_hidden:
            hub.enable_progress_bars()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
