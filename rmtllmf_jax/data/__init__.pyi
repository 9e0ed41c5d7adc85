from .source import Example, Source
from .sources import SOURCES, get_source
from .sources.arrays import ArraySource, TaskArrays
from .sources.embedded import EMBEDDED, EmbeddedSource
from .splits import evaluation_subset, few_shot, split_validation
from .task_data import Rows, TaskData, load_task
from .tasks import EMBEDDED_NAMES, TASK_NAMES, validate_tasks

__all__ = [
    "EMBEDDED",
    "EMBEDDED_NAMES",
    "SOURCES",
    "TASK_NAMES",
    "ArraySource",
    "EmbeddedSource",
    "Example",
    "Rows",
    "Source",
    "TaskArrays",
    "TaskData",
    "evaluation_subset",
    "few_shot",
    "get_source",
    "load_task",
    "split_validation",
    "validate_tasks",
]
