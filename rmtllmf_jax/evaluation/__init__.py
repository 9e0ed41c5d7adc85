"""How good a model is on its tasks."""
