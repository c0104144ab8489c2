"""What happens while a picture is decoded, written down and drawn: traces, heat maps, animations, sheets."""

from .recorder import Recorder, Recording
from .trace import Trace, traces_of

__all__ = ["Recorder", "Recording", "Trace", "traces_of"]
