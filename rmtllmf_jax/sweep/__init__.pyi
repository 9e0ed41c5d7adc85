from .axis import Axis, parse_axis
from .engine import Engine
from .grid import Cell, Grid, choose_combinations
from .layout import Layout, one_device
from .objective import objective_of, with_users
from .parts import CellStore, read_parts
from .run import run_grid
from .settings import Settings
from .trackers import TRACKERS, get_tracker

__all__ = [
    "TRACKERS",
    "Axis",
    "Cell",
    "CellStore",
    "Engine",
    "Grid",
    "Layout",
    "Settings",
    "choose_combinations",
    "get_tracker",
    "objective_of",
    "one_device",
    "parse_axis",
    "read_parts",
    "run_grid",
    "with_users",
]
