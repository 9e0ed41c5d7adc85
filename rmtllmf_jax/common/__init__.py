"""What every room may use: one exception, atomic files, progress bars. No jax in here."""
