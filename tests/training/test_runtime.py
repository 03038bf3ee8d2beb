import os

import pytest
import torch
from accelerate import Accelerator

from dinov2_zoo.config import RuntimeConfig
from dinov2_zoo.errors import ConfigError, TrainingError
from dinov2_zoo.training.runtime import Runtime


def test_one_process_needs_no_group(runtime):
    assert (runtime.rank, runtime.world_size, runtime.is_main) == (0, 1, True)
    assert runtime.any_true(True) and not runtime.any_true(False)
    assert runtime.gather(3) == [3] and runtime.broadcast("x") == "x"
    assert runtime.mean({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}) == {"a": 2.0, "b": 3.0}
    assert not torch.distributed.is_initialized()


def test_bf16_multiplies_in_bf16_and_fp32_leaves_float64_alone():
    x = torch.ones(2, 2)
    with Runtime(RuntimeConfig(precision="bf16", cpu=True)) as runtime, runtime.autocast():
        assert (x @ x).dtype == torch.bfloat16
    with Runtime(RuntimeConfig(precision="fp32", cpu=True)) as runtime, runtime.autocast():
        assert (x.double() @ x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("environment", "precision", "remedy"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "fp32", "set runtime.precision to auto"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "auto", "bf16 or no"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "auto", "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "auto", "set it to false"),
    ],
)
def test_what_a_launcher_asks_for_in_vain_is_an_error(monkeypatch, environment, precision, remedy):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=remedy):
        Runtime(RuntimeConfig(precision=precision, cpu=True))


def test_processes_that_were_launched_together_but_are_alone_are_an_error(monkeypatch):
    def lonely(**arguments):
        with monkeypatch.context() as environment:
            environment.delenv("WORLD_SIZE")
            return Accelerator(**arguments)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("dinov2_zoo.training.runtime.Accelerator", lonely)
    with pytest.raises(TrainingError, match=r"2 processes were launched.*ddp.yaml"):
        Runtime(RuntimeConfig(cpu=True))


def test_an_unknown_tracker_is_an_error_before_training():
    with pytest.raises(ConfigError, match=r"tensorbored.*pip install"):
        Runtime(RuntimeConfig(cpu=True), trackers=["tensorbored"])


def test_tensorboard_gets_settings_and_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    with Runtime(RuntimeConfig(cpu=True), trackers=["tensorboard"], run_dir=tmp_path) as runtime:
        runtime.trackers.start("run", {"optim": {"steps": 3, "betas": (0.9, 0.99)}})
        runtime.trackers.log({"loss": 1.0}, 1)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_the_same_seed_draws_the_same_weights():
    draws = []
    for _ in range(2):
        with Runtime(RuntimeConfig(seed=5, cpu=True)):
            draws.append(torch.randn(4))
    assert torch.equal(*draws)


def test_one_process_gets_every_core_unless_told_otherwise():
    torch.set_num_threads(1)  # as under `accelerate launch`, which sets OMP_NUM_THREADS=1
    with Runtime(RuntimeConfig(cpu=True)):
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    with Runtime(RuntimeConfig(cpu=True, threads=3)):
        assert torch.get_num_threads() == 3


def test_full_state_dict_is_a_copy(runtime):
    layer = torch.nn.Linear(2, 2)
    state = runtime.full_state_dict(layer)
    assert state.keys() == {"weight", "bias"} and torch.equal(state["weight"], layer.weight)
    state["weight"].zero_()
    assert layer.weight.abs().sum() > 0
