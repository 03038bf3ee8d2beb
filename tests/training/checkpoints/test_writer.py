"""Checkpoints are whole or not there; damaged ones are found out and passed over."""

import json
import shutil
import threading

import pytest
import tiny_run
import torch

from dinov2_zoo.config import CheckpointConfig, RuntimeConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.training.checkpoints import writer as writing
from dinov2_zoo.training.checkpoints.find import newest_whole, rewind
from dinov2_zoo.training.checkpoints.manifest import check_files, read_manifest
from dinov2_zoo.training.checkpoints.resume import load_checkpoint
from dinov2_zoo.training.checkpoints.writer import CheckpointWriter
from dinov2_zoo.training.runtime import Runtime


@pytest.fixture
def state():
    with Runtime(RuntimeConfig(precision="fp32", cpu=True, threads=1)) as runtime:
        yield tiny_run.start(runtime, tiny_run.config(12))


def save(folder, state, *steps, **config):
    with CheckpointWriter(folder, CheckpointConfig(**config)) as writer:
        for step in steps:
            state.step = step
            writer.save(state)


def names(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def test_the_newest_are_kept_and_every_so_many_for_good(state, tmp_path):
    save(tmp_path, state, *range(2, 13, 2), keep=2, keep_every=4)
    assert names(tmp_path) == {"step-4", "step-8", "step-10", "step-12"}


def test_what_a_killed_run_left_half_written_is_not_seen_and_cleared_away(state, tmp_path):
    save(tmp_path, state, 10)
    (tmp_path / "checkpoints/.step-11.part").mkdir()
    (tmp_path / "checkpoints/.step-9.old").mkdir()
    (tmp_path / "checkpoints/step-12").mkdir()  # no manifest: not ours
    found, skipped = newest_whole(tmp_path)
    assert found.name == "step-10" and skipped == []
    save(tmp_path, state, 11)
    assert names(tmp_path) == {"step-10", "step-11", "step-12"}
    assert newest_whole(tmp_path / "elsewhere") == (None, [])


def test_saving_the_same_step_again_replaces_it(state, tmp_path):
    save(tmp_path, state, 5)
    with torch.no_grad():
        state.student.projector.bias.fill_(5.0)
    save(tmp_path, state, 5)
    assert names(tmp_path) == {"step-5"}
    load_checkpoint(newest_whole(tmp_path)[0], state)
    assert (state.student.projector.bias == 5.0).all()


def test_a_step_is_saved_once_when_a_stop_falls_on_its_checkpoint(state, tmp_path):
    with CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
        state.step = 3
        writer.save(state)
        writer.wait()
        written = (tmp_path / "checkpoints/step-3/manifest.json").stat().st_mtime_ns
        writer.save(state)
    assert (tmp_path / "checkpoints/step-3/manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("background", [True, False])
def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(
    state, tmp_path, background, monkeypatch
):
    write, may_write = writing.save, threading.Event()

    def slow(*arguments, **options):
        assert may_write.wait(20)
        write(*arguments, **options)

    monkeypatch.setattr(writing, "save", slow)
    before = state.student.projector.weight.detach().clone()
    with CheckpointWriter(tmp_path, CheckpointConfig(background=background)) as writer:
        state.step = 3
        if not background:
            may_write.set()
        writer.save(state)  # in the background this returns although nothing can be written yet
        assert (newest_whole(tmp_path)[0] is None) == background
        with torch.no_grad():
            state.student.projector.weight.zero_()
        may_write.set()
    load_checkpoint(newest_whole(tmp_path)[0], state)
    assert torch.equal(state.student.projector.weight, before)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "a flipped bit": (lambda folder: flip(next(folder.glob("*.distcp"))), "was changed since it was written"),
    "a cut file": (lambda folder: truncate(next(folder.glob("*.distcp"))), r"bytes of"),
    "a missing file": (lambda folder: (folder / ".metadata").unlink(), "is missing"),
    "a flipped bit in the index": (lambda folder: flip(folder / ".metadata"), "was changed"),
    "a cut manifest": (lambda folder: truncate(folder / "manifest.json"), "not a whole checkpoint"),
    "an edited manifest": (
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"step": 8', '"step": 9')
        ),
        "manifest.json is damaged",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_found_out_and_the_one_before_is_used(state, tmp_path, kind):
    save(tmp_path, state, 4, 8)
    damage, words = DAMAGE[kind]
    damage(tmp_path / "checkpoints/step-8")
    found, (said,) = newest_whole(tmp_path)
    assert found.name == "step-4"
    with pytest.raises(CheckpointError, match=words):
        check_files(tmp_path / "checkpoints/step-8")
    assert "step-8" in said


def test_a_manifest_of_another_version_is_refused(state, tmp_path):
    save(tmp_path, state, 4)
    (tmp_path / "checkpoints/step-4/manifest.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99, this version reads"):
        read_manifest(tmp_path / "checkpoints/step-4")


def test_going_back_to_a_named_step_sets_later_ones_aside(state, tmp_path):
    save(tmp_path, state, 4, 6, 8)
    assert [f.name for f in rewind([tmp_path], "step-6")] == ["step-6"]
    assert names(tmp_path) == {"step-4", "step-6", "discarded-step-8"}
    assert newest_whole(tmp_path)[0].name == "step-6"
    with pytest.raises(CheckpointError, match=r"no checkpoint step-8 \(there are: step-4, step-6\)"):
        rewind([tmp_path], "step-8")


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_the_last_one(state, tmp_path, background):
    save(tmp_path, state, 4)
    with CheckpointWriter(tmp_path, CheckpointConfig(background=background)) as writer:
        # A file in the folder's place fails for root, too.
        shutil.move(tmp_path / "checkpoints", tmp_path / "aside")
        (tmp_path / "checkpoints").write_text("")
        state.step = 8
        with pytest.raises(CheckpointError, match=r"step 8 could not be written .*FileExistsError"):
            writer.save(state)
            writer.wait()
        (tmp_path / "checkpoints").unlink()
        shutil.move(tmp_path / "aside", tmp_path / "checkpoints")
    assert newest_whole(tmp_path)[0].name == "step-4"


def test_the_manifest_lists_every_file_and_tensor(state, tmp_path):
    save(tmp_path, state, 4)
    folder = tmp_path / "checkpoints/step-4"
    record = json.loads((folder / "manifest.json").read_text())
    assert set(record["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert record["tensors"]["module.student.projector.weight"] == [[8, 16], "float32"]
