"""Texts for language models: sources, tokens in rows, splits."""
