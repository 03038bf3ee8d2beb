"""Training that is stopped in the midst of it."""

from contextlib import contextmanager

import pytest
import torch


@contextmanager
def stopped_after(steps, monkeypatch):
    """Within the block a KeyboardInterrupt must come at the step of AdamW after so many; behind it, steps are free."""
    original, done = torch.optim.AdamW.step, []

    def stop(self, *args, **options):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return original(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        yield
    monkeypatch.setattr(torch.optim.AdamW, "step", original)
