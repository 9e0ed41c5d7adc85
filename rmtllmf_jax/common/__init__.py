"""What every sub-package may use: one exception, atomic files, progress bars. No jax in here."""
