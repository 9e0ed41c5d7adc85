from .language import finetune_decoder
from .recipes import DEMO, FINETUNE, REALIGN, RUN_RECIPES, Recipe, RunRecipe
from .task_models import FineTuned, Imported, TaskModels, import_vector

__all__ = [
    "DEMO",
    "FINETUNE",
    "REALIGN",
    "RUN_RECIPES",
    "FineTuned",
    "Imported",
    "Recipe",
    "RunRecipe",
    "TaskModels",
    "finetune_decoder",
    "import_vector",
]
