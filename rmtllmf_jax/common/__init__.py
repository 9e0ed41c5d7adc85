"""Shared by all sub-packages: one exception, atomic files, progress bars. Does not import jax."""
