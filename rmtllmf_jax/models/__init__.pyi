from .backbone import Backbone, load_backbone
from .export import export_model
from .features import extract_features
from .heads import Head, lda_head, logits_by_task, stack_heads
from .pretrained import Pretrained, load_clip, read_pretrained
from .weights import load_tree, save_tree
from .zero_shot import zero_shot_head

__all__ = [
    "Backbone",
    "Head",
    "Pretrained",
    "export_model",
    "extract_features",
    "lda_head",
    "load_backbone",
    "load_clip",
    "load_tree",
    "logits_by_task",
    "read_pretrained",
    "save_tree",
    "stack_heads",
    "zero_shot_head",
]
