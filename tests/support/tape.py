"""What stands in for CUDA graphs without a GPU: a trace, a list of operations on the very tensors that were there when it was made.

What a CUDA graph could not see (a tensor that was made anew, a decision in Python) a trace does not see either.
"""

from __future__ import annotations

from torch.fx.experimental.proxy_tensor import make_fx


class Tape:
    """Records what ``work`` does by doing it once, at the first replay; counts recordings and replays."""

    def __init__(self):
        self.recordings = self.replays = 0

    def __call__(self, work):
        self.recordings += 1
        trace = None

        def replay():
            nonlocal trace
            self.replays += 1
            if trace is None:
                trace = make_fx(lambda: work())()
            else:
                trace()

        return replay
