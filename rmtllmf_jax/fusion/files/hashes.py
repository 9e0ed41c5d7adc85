"""Hashes of the inputs, computed while they are merged."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import file_hash
from rmtllmf_jax.fusion.files.checkpoint import Checkpoint


class Hashes:
    """SHA-256 of all files of some checkpoints, computed in the background of a merge."""

    def __init__(self, checkpoints: list[Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._prints = [checkpoint.fingerprint() for checkpoint in checkpoints]
        self._pool = ThreadPoolExecutor(1)
        self._hashes: list[list[Future[str]]] = [
            [self._pool.submit(file_hash, path) for path in checkpoint.files]
            for checkpoint in checkpoints
        ]

    def __enter__(self) -> Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def result(self) -> list[list[str]]:
        """Return the hashes of each checkpoint's files, once all are there.

        **Raises:** `InputError` if a file has changed since the start: then the output is a merge
        of no one state of the inputs.
        """
        try:
            found = [[future.result() for future in futures] for futures in self._hashes]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}).") from error
        for checkpoint, before in zip(self._checkpoints, self._prints, strict=True):
            if checkpoint.fingerprint() != before:
                raise InputError(
                    f"{checkpoint.given}: was changed while it was being merged; nothing was "
                    "written. Start again when its files stay as they are."
                )
        return found
