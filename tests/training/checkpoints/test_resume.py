import json

import pytest
import tiny_run
import torch

from dinov2_zoo.config import CheckpointConfig, RuntimeConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.training.checkpoints.find import newest_whole
from dinov2_zoo.training.checkpoints.resume import load_checkpoint
from dinov2_zoo.training.checkpoints.writer import CheckpointWriter
from dinov2_zoo.training.runtime import Runtime

STEPS, CUT = 12, 5


@pytest.fixture
def runtime():
    with Runtime(RuntimeConfig(precision="fp32", cpu=True, threads=1)) as runtime:
        yield runtime


def save(folder, state, **config):
    with CheckpointWriter(folder, CheckpointConfig(**config)) as writer:
        writer.save(state)
    return folder / f"checkpoints/step-{state.step}"


def go_on(runtime, state, until, folder=None):
    """Train to step `until` of a run of STEPS, then stop as a killed process would, after its checkpoint."""
    losses = []

    def hook(state, line):
        losses.append(line["loss"])
        if state.step == until:
            if folder is not None:
                save(folder, state)
            raise InterruptedError

    try:
        batches = tiny_run.batches(STEPS, start=state.step)
        tiny_run.train(runtime, state, batches, tiny_run.silent_log(STEPS), [hook])
    except InterruptedError:
        pass
    return losses


def everything(state):
    tensors = dict(state.tensors())
    for i, p in enumerate(p for group in state.optimizer.param_groups for p in group["params"]):
        tensors |= {f"{i}.{slot}": value for slot, value in state.optimizer.state[p].items()}
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_run_is_the_same_run_bit_for_bit(runtime, tmp_path, dtype):
    torch.set_default_dtype(dtype)
    try:
        whole = tiny_run.start(runtime, tiny_run.config(STEPS))
        losses = go_on(runtime, whole, STEPS)

        first = tiny_run.start(runtime, tiny_run.config(STEPS))
        early = go_on(runtime, first, CUT, tmp_path)
        again = tiny_run.start(runtime, tiny_run.config(STEPS), seed=1)
        # The teacher is no part of the checkpoint: a run brings its own.
        again.module.teacher.load_state_dict(first.module.teacher.state_dict())
        load_checkpoint(newest_whole(tmp_path)[0], again)
        assert again.step == CUT
        late = go_on(runtime, again, STEPS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert early + late == losses
    expected, found = everything(whole), everything(again)
    assert expected.keys() == found.keys() and any("exp_avg" in name for name in found)
    assert all(torch.equal(expected[name], found[name]) and expected[name].dtype == found[name].dtype for name in found)
    assert found["steps_seen"] == STEPS


def test_the_frozen_teacher_is_not_saved(runtime, tmp_path):
    state = tiny_run.start(runtime, tiny_run.config(STEPS))
    names = json.loads((save(tmp_path, state) / "manifest.json").read_text())["tensors"]
    assert not any("teacher" in name for name in names)
    assert "module.ema.projector.weight" in names and "module.steps_seen" in names


def test_a_checkpoint_of_another_model_names_what_differs(runtime, tmp_path):
    state = tiny_run.start(runtime, tiny_run.config(STEPS))
    folder = save(tmp_path, state)
    state.module.student.projector = torch.nn.Linear(tiny_run.WIDTH, 4)
    with pytest.raises(CheckpointError, match=r"student.projector.weight is \[8, 16\], not \[4, 16\].*resume with"):
        load_checkpoint(folder, state)
