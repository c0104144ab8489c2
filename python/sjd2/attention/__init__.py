"""Who computes the attention of a window: the model's own code under a mask, or something that reads the valid columns alone.

A model of Transformers asks an interface for its attention by a name in its configuration. For the length of a forward that name becomes one of ours
(``interface.py``), and what the model passes on as its mask says which columns a row has. Nothing of the model is changed.
"""

from .choice import check_attention, choose_attention
from .interface import ATTENTIONS, attending
from .shape import AttentionShape

__all__ = ["ATTENTIONS", "AttentionShape", "attending", "check_attention", "choose_attention"]
