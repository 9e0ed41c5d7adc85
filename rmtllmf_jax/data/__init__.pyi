from .reading import Reading
from .source import Example, Source
from .sources import SOURCES, get_source
from .sources.arrays import ArraySource, TaskArrays
from .sources.embedded import EMBEDDED, EmbeddedSource
from .splits import evaluation_subset, few_shot, split_validation
from .task_data import Rows, TaskData, load_task
from .tasks import EMBEDDED_NAMES, REGISTERED, SUITES, TASK_NAMES, validate_tasks
from .texts.beginnings import Beginning, beginnings
from .texts.embedded import EMBEDDED_TEXTS, EmbeddedTexts, StyledTask, embedded_text_task
from .texts.packing import PackedTexts, load_texts
from .texts.questions import Choices, Questions, load_questions
from .texts.sources import (
    Document,
    HubTexts,
    JsonLines,
    ParquetTexts,
    TextFile,
    Texts,
    text_source,
)
from .texts.task import TextData, TextTask, load_text_task

__all__ = [
    "EMBEDDED",
    "EMBEDDED_NAMES",
    "EMBEDDED_TEXTS",
    "REGISTERED",
    "SOURCES",
    "SUITES",
    "TASK_NAMES",
    "ArraySource",
    "Beginning",
    "Choices",
    "Document",
    "EmbeddedSource",
    "EmbeddedTexts",
    "Example",
    "HubTexts",
    "JsonLines",
    "PackedTexts",
    "ParquetTexts",
    "Questions",
    "Reading",
    "Rows",
    "Source",
    "StyledTask",
    "TaskArrays",
    "TaskData",
    "TextData",
    "TextFile",
    "TextTask",
    "Texts",
    "beginnings",
    "embedded_text_task",
    "evaluation_subset",
    "few_shot",
    "get_source",
    "load_questions",
    "load_task",
    "load_text_task",
    "load_texts",
    "split_validation",
    "text_source",
    "validate_tasks",
]
