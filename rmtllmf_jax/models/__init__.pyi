from .backbone import Backbone, abstract_params, load_backbone
from .configs import read_config
from .decoder import Decoder
from .export import export_decoder, export_model
from .features import extract_features
from .generation import Greedy, Sampled, generate
from .heads import Head, lda_head, logits_by_task, stack_heads
from .layouts import to_torch
from .pretrained import Pretrained, load_clip, load_decoder, read_pretrained
from .text import read_tokenizer
from .vit import VisionTransformer
from .weights import load_tree, save_tree
from .zero_shot import zero_shot_head

__all__ = [
    "Backbone",
    "Decoder",
    "Greedy",
    "Head",
    "Pretrained",
    "Sampled",
    "VisionTransformer",
    "abstract_params",
    "export_decoder",
    "export_model",
    "extract_features",
    "generate",
    "lda_head",
    "load_backbone",
    "load_clip",
    "load_decoder",
    "load_tree",
    "logits_by_task",
    "read_config",
    "read_pretrained",
    "read_tokenizer",
    "save_tree",
    "stack_heads",
    "to_torch",
    "zero_shot_head",
]
