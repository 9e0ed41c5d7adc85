from .presets import DEMO, PRESETS, Preset
from .recipes import FINETUNE, REALIGN, Recipe
from .task_models import FineTuned, Imported, TaskModels, import_vector

__all__ = [
    "DEMO",
    "FINETUNE",
    "PRESETS",
    "REALIGN",
    "FineTuned",
    "Imported",
    "Preset",
    "Recipe",
    "TaskModels",
    "import_vector",
]
