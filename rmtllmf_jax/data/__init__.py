"""Labelled images: tasks, sources, a decoded cache and seeded splits. Needs no jax."""
