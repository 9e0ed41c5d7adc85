from .language import finetune_decoder
from .recipes import DEMO, FINETUNE, REALIGN, RUN_RECIPES, Recipe, RunRecipe
from .task_heads import HEADS, Lda, Own, Probe, TaskHeads, ZeroShot, parse_head
from .task_models import FineTuned, Imported, TaskModels, import_vector

__all__ = [
    "DEMO",
    "FINETUNE",
    "HEADS",
    "REALIGN",
    "RUN_RECIPES",
    "FineTuned",
    "Imported",
    "Lda",
    "Own",
    "Probe",
    "Recipe",
    "RunRecipe",
    "TaskHeads",
    "TaskModels",
    "ZeroShot",
    "finetune_decoder",
    "import_vector",
    "parse_head",
]
