"""Figures and tables made only from a run's tables: no model, no jax, no other sub-package.

`io` reads, `tables` averages, `intervals` resamples, `verdict` compares, `figures` draws,
`terminal` prints, and `write.write_report` does all of this for a run folder.
"""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
