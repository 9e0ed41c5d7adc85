from .source import Example, Source
from .sources import SOURCES, get_source
from .splits import evaluation_subset, few_shot, split_validation
from .task_data import Rows, TaskData, load_task
from .tasks import EMBEDDED_NAMES, TASK_NAMES, validate_tasks

__all__ = [
    "EMBEDDED_NAMES",
    "SOURCES",
    "TASK_NAMES",
    "Example",
    "Rows",
    "Source",
    "TaskData",
    "evaluation_subset",
    "few_shot",
    "get_source",
    "load_task",
    "split_validation",
    "validate_tasks",
]
