"""Training that is stopped in the midst of it."""

from contextlib import contextmanager

import pytest
import torch

from dinov2_zoo.training import session


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


@contextmanager
def after_step(step, action, monkeypatch, seen=lambda batches: batches):
    """Within the block something is done once the last of the runs that train has finished a step.

    `seen` passes the batches on.
    """
    whole = session.train

    def watched(runtime, lanes, batches, **more):
        lanes[-1].hooks = [*lanes[-1].hooks, lambda state, _: action() if state.step == step else None]
        whole(runtime, lanes, seen(batches), **more)

    monkeypatch.setattr(session, "train", watched)
    yield
    monkeypatch.setattr(session, "train", whole)


@contextmanager
def killed_after_step(step, monkeypatch, **more):
    """Within the block training must die after a step; more is as in `after_step`."""

    def die():
        raise InterruptedError

    with after_step(step, die, monkeypatch, **more), pytest.raises(InterruptedError):
        yield
