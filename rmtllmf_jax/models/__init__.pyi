from .backbone import Backbone, abstract_params, load_backbone
from .configs import read_config
from .export import export_model
from .features import extract_features
from .heads import Head, lda_head, logits_by_task, stack_heads
from .layouts import to_torch
from .pretrained import Pretrained, load_clip, read_pretrained
from .vit import VisionTransformer
from .weights import load_tree, save_tree
from .zero_shot import zero_shot_head

__all__ = [
    "Backbone",
    "Head",
    "Pretrained",
    "VisionTransformer",
    "abstract_params",
    "export_model",
    "extract_features",
    "lda_head",
    "load_backbone",
    "load_clip",
    "load_tree",
    "logits_by_task",
    "read_config",
    "read_pretrained",
    "save_tree",
    "stack_heads",
    "to_torch",
    "zero_shot_head",
]
