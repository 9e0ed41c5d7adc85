"""Figure 3: cosines of received task vectors without an attacker.

    python experiments/figure_3.py --run runs/demo [--quick]

The paper: at most .24 between tasks as R-MTLLMF receives them. With errors that are independent
across users (exact for MMSE-SIC) cosines shrink towards zero, whatever those of the vectors; with
`noisy_reference` (whole models are sent and differenced against one noisy base) they go to .5.

Users with unequal MSEs do not give one half, and reloading the embeddings can change little where
they are few of the parameters. Half a minute on two cores for 20 channel draws.
"""

from __future__ import annotations

import tyro
from cosine_study import Options, draw_figure

if __name__ == "__main__":
    draw_figure(tyro.cli(Options), 3, "ideal")
