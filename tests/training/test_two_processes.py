"""Two processes are one: sharded for real, and equal to a single process that sees the same global batch in one piece.

Some runs have dropped paths, and on two processes micro-batches (`two_process_run.ACCUMULATED`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
import two_process_run
from safetensors.torch import load_file

from dinov2_zoo.config import RuntimeConfig
from dinov2_zoo.training.checkpoints.find import newest_whole
from dinov2_zoo.training.checkpoints.resume import load_checkpoint
from dinov2_zoo.training.runtime import Runtime

SUPPORT = Path(__file__).resolve().parent.parent / "support"
ROOT = SUPPORT.parent.parent
KINDS = ("features", "relations", "teachers", "sinkhorn", "ema", "pretrain")


def launch(out, configuration, *arguments, processes=2, extra=()):
    """Run some processes; results are judged by what they leave, for gloo may abort a finished process at exit."""
    out.mkdir()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--main_process_port", "0", *extra]
    command += ["--config_file", str(ROOT / "recipes/configs/accelerate" / configuration)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*command, str(SUPPORT / "two_process_run.py"), str(out), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    for kind in arguments[1:]:
        assert (out / f"{kind}.json").exists(), done.stderr[-4000:]
    return out


def results(out, kind):
    return json.loads((out / f"{kind}.json").read_text()), load_file(out / f"{kind}.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    two_process_run.main(out, "float64", *KINDS, "several")
    return out


@pytest.fixture(scope="module", params=["cpu.yaml", "fsdp.yaml"])
def together(request, tmp_path_factory):
    kinds = KINDS if request.param == "cpu.yaml" else KINDS[:3]
    return launch(tmp_path_factory.mktemp("pair") / "out", request.param, "float64", *kinds, "several"), kinds


def test_two_processes_shard_and_equal_one(alone, together):
    out, kinds = together
    for kind in kinds:
        facts, weights = results(out, kind)
        expected_facts, expected = results(alone, kind)
        assert facts["world_size"] == 2 and facts["sharded"] and 0.45 < facts["local_share"] < 0.6, kind
        assert expected_facts["world_size"] == 1 and not expected_facts["sharded"]
        assert len(facts["lines"]) == two_process_run.STEPS
        for line, reference in zip(facts["lines"], expected_facts["lines"], strict=True):
            # Health metrics are those of a process's own images.
            compared = {name for name in reference if not name.startswith("health/")}
            for name in compared - {"images_per_second", "data_wait", "hours_left"}:
                assert line[name] == pytest.approx(reference[name], rel=1e-12, abs=1e-10), (kind, name)
        assert weights.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=1e-10, msg=f"{kind}: {name}")
        moved = expected["backbone.blocks.0.attn.qkv.weight"] - expected["ema.backbone.blocks.0.attn.qkv.weight"]
        assert moved.abs().max() > 1e-4, "the run did not train"


def test_students_of_one_teacher_are_each_what_they_are_alone(alone, together):
    facts, expected = (json.loads((out / "several.json").read_text()) for out in (together[0], alone))
    assert facts["one_teacher"] and facts["sharded"] and not expected["sharded"]
    for found in (facts, expected):  # bit for bit on as many processes
        assert found["losses"] == found["losses_alone"] and found["equal_alone"] and found["resumed_equal"]
    for mine, theirs in zip(facts["losses"], expected["losses"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-10) and len(mine) == two_process_run.STEPS
    assert facts["losses"][0] != facts["losses"][1]


def test_resuming_is_exact_alone_and_together(alone, together):
    out, kinds = together
    for kind in kinds:
        assert results(alone, kind)[0]["resumed_equal"] and results(out, kind)[0]["resumed_equal"], kind


def test_a_checkpoint_of_two_processes_continues_on_one(alone, together):
    out, _ = together
    _, expected = results(alone, "features")
    torch.set_default_dtype(torch.float64)
    try:
        with Runtime(RuntimeConfig(precision="fp32", cpu=True, threads=1)) as runtime:
            state = two_process_run.start(runtime, "features")
            load_checkpoint(newest_whole(out / "features")[0], state)
            batches = two_process_run.batches(runtime, two_process_run.CUT)
            tiny_run.train(runtime, state, batches, tiny_run.silent_log(two_process_run.STEPS))
            for name, tensor in runtime.full_state_dict(state.student).items():
                torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-10)
    finally:
        torch.set_default_dtype(torch.float32)


def test_hybrid_sharding_is_two_copies_of_two_shards_and_equals_one_process(alone, tmp_path):
    sizes = ("--parallelism_config_dp_replicate_size", "2", "--parallelism_config_dp_shard_size", "2")
    out = launch(tmp_path / "out", "hsdp.yaml", "float64", "features", processes=4, extra=sizes)
    facts, weights = results(out, "features")
    expected_facts, expected = results(alone, "features")
    assert facts["world_size"] == 4 and facts["sharded"] and 0.45 < facts["local_share"] < 0.6
    assert facts["resumed_equal"]
    for line, reference in zip(facts["lines"], expected_facts["lines"], strict=True):
        for name in ("loss", "gradient_norm/backbone"):
            assert line[name] == pytest.approx(reference[name], rel=1e-12, abs=1e-10), name
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=1e-10, msg=name)


def test_a_mishap_on_one_process_stops_both_before_the_update(tmp_path):
    out = launch(tmp_path / "out", "cpu.yaml", "float32", "mishaps")
    (different, not_finite, untouched, step), second = json.loads((out / "mishaps.json").read_text())
    assert second == [different, not_finite, untouched, step]
    assert "different weights" in different
    # Only process 1 was poisoned, so only its half of step 2 (images 16 to 23) is blamed.
    assert "Step 2, not finite: loss, match" in not_finite and untouched and step == 2
    record = json.loads((out / "bad_batches/step-2.json").read_text())
    assert [(p["process"], p["sample_ids"]) for p in record["processes"]] == [(1, [20, 21, 22, 23])]
    assert load_file(out / "bad_batches/step-2-process-1.safetensors")["0.sample_ids"].tolist() == [20, 21, 22, 23]
    assert not (out / "bad_batches/step-2-process-0.safetensors").exists()


def test_bf16_trains_sharded_and_close_to_one_process(tmp_path):
    (tmp_path / "alone").mkdir()
    two_process_run.main(tmp_path / "alone", "float32", "features")
    launch(tmp_path / "pair", "fsdp.yaml", "float32", "features")
    facts, weights = results(tmp_path / "pair", "features")
    expected, _ = results(tmp_path / "alone", "features")
    assert facts["sharded"] and facts["resumed_equal"]
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}
    for line, reference in zip(facts["lines"], expected["lines"], strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], rel=5e-3)
