from .augment import Augmentation, Crop, Flip
from .language import finetune_decoder
from .parallel import Split
from .recipes import DEMO, FINETUNE, REALIGN, RUN_RECIPES, Recipe, RunRecipe
from .task_heads import HEADS, Lda, Own, Probe, TaskHeads, ZeroShot, parse_head
from .task_models import FineTuned, Imported, TaskModels, import_vector
from .watch import Choice

__all__ = [
    "DEMO",
    "FINETUNE",
    "HEADS",
    "REALIGN",
    "RUN_RECIPES",
    "Augmentation",
    "Choice",
    "Crop",
    "FineTuned",
    "Flip",
    "Imported",
    "Lda",
    "Own",
    "Probe",
    "Recipe",
    "RunRecipe",
    "Split",
    "TaskHeads",
    "TaskModels",
    "ZeroShot",
    "finetune_decoder",
    "import_vector",
    "parse_head",
]
