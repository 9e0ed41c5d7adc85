from .figures import figure_2, figure_5
from .io import read_results
from .terminal import print_summary
from .write import write_report

__all__ = ["figure_2", "figure_5", "print_summary", "read_results", "write_report"]
