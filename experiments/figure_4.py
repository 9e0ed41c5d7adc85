"""Figure 4: cosines of received task vectors under the sum-rate attack (P1).

    python experiments/figure_4.py --run runs/demo [--quick]

The paper: .48 to .52 between unprotected vectors, and less once the embeddings are reloaded. Errors
that are independent across users give zero; of the natural error models only `noisy_reference`
gives one half, which is then a property of how models are sent and not of the attack.

Half a minute on two cores for 20 channel draws.
"""

from __future__ import annotations

import tyro
from cosine_study import Options, draw_figure

if __name__ == "__main__":
    draw_figure(tyro.cli(Options), 4, "sum_rate")
