"""The whole pipeline over a grid of cells: combinations, scenarios, draws, seeds, protections."""
