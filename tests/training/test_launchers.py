"""What launchers say is understood; what they would silently drop is an error."""

import subprocess

import pytest
from sessions import ACCELERATE, ROOT, SCRIPT, environment

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.training.launchers import adopt_srun, check_fsdp_keys, first_host, replicas

FILES = sorted((ROOT / "recipes/configs/accelerate").glob("*.yaml"))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12],cpu1", "gpu07"), ("n3,n[5-6]", "n3"), ("login", "login"), ("a[1,3]-ib,b2", "a1-ib")],
)
def test_the_first_host_of_a_list_is_found(nodes, first):
    assert first_host(nodes) == first


def test_srun_is_translated_unless_another_launcher_has_spoken():
    step = {
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[3-4]",
        "SLURM_JOB_ID": "123456",
    }
    told = dict(step)
    adopt_srun(told)
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [told[name] for name in names] == ["16", "9", "1", "8", "gpu3"]
    assert 1024 < int(told["MASTER_PORT"]) < 65536
    for untouched in (step | {"WORLD_SIZE": "4"}, step | {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_PROCID": "0"}):
        before = dict(untouched)
        adopt_srun(untouched)
        assert untouched == before


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_our_own_files_have_no_unknown_key(file):
    check_fsdp_keys(file)


def test_a_mistyped_fsdp_key_is_caught_under_accelerate_launch(tmp_path):
    file = tmp_path / "typo.yaml"
    text = (ROOT / "recipes/configs/accelerate/fsdp.yaml").read_text()
    file.write_text(text.replace("fsdp_reshard_after_forward", "fsdp_reshard_after_foward"))
    command = [*ACCELERATE, str(file), "--num_processes", "2", SCRIPT, f"--runs={tmp_path}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    words = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "did you mean fsdp_reshard_after_forward?" in words, words
    assert not (tmp_path / "distill").exists()


def test_copies_and_shards_must_use_every_process(monkeypatch):
    assert replicas(8) == 1
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "2")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "4")
    assert replicas(8) == 2
    with pytest.raises(ConfigError, match="2 copies of 4 shards, and there are 6 processes"):
        replicas(6)
