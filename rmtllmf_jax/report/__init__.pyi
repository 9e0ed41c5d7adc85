from .figures import axis_figure, figure_2, figure_5, scale_figure
from .io import read_results
from .tables import parts
from .terminal import print_summary
from .vector_figures import cosine_figure
from .write import write_report

__all__ = [
    "axis_figure",
    "cosine_figure",
    "figure_2",
    "figure_5",
    "parts",
    "print_summary",
    "read_results",
    "scale_figure",
    "write_report",
]
