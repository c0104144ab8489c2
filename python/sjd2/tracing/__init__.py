"""What happens while a picture is decoded, written down and drawn: traces, heat maps, animations, sheets; see docs/pictures.md."""

from .animation import animate_window, slot_states
from .maps import draw_maps
from .recorder import Recorder, Recording
from .sheets import draw_sheet
from .trace import Trace, traces_of

__all__ = ["Recorder", "Recording", "Trace", "animate_window", "draw_maps", "draw_sheet", "slot_states", "traces_of"]
