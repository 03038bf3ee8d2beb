"""A run from stored targets, from command line to student; its teacher is loaded for its start or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file
from stopped_training import killed_after_step
from target_stores import CROPS

from dinov2_zoo import Dinov2Model
from dinov2_zoo.models.stored import StoredBackbone
from dinov2_zoo.recipes import distill, distill_arguments
from dinov2_zoo.training import session

OPTIONS = (
    "--student=vitti14 --optim.steps=8 --optim.warmup_steps=1 --loader.batch_size=3 --loader.workers=0 "
    "--evaluation.fit_images=9 --init_images=9 --runtime.threads=1 --log.progress=false --log.every=1 "
    "--runtime.precision=fp32 --checkpoint.every=2 --evaluation.every=4 --guard=false"
)


@pytest.fixture
def loads(monkeypatch):
    """Every model that is loaded."""
    seen, load = [], Dinov2Model.from_pretrained.__func__
    monkeypatch.setattr(
        Dinov2Model,
        "from_pretrained",
        classmethod(lambda cls, source, **o: (seen.append(str(source)), load(cls, source, **o))[1]),
    )
    return seen


def distil(place, runs, name, *more, resume=None):
    argv = [*OPTIONS.split(), f"--targets={place.store}", f"--runs={runs}", f"--name={name}", *more]
    config, _ = distill_arguments(argv)
    distill.launch(config, resume=resume)
    return runs / name


def test_the_store_says_what_a_run_is_of(made):
    config, _ = distill_arguments([f"--targets={made.store}"])
    assert (config.data, config.teacher) == (str(made.images), str(made.teacher))
    assert (config.crops.global_size, config.crops.local_count, config.evaluation.heldout_count) == (28, 2, 3)
    assert config.name == "auto" and config.optim.base_lr == 2e-3  # own_images.yaml, not the demo
    config, _ = distill_arguments([f"--targets={made.store}", "--crops.local_count=0", "--teacher=x"])
    assert (config.crops.local_count, config.crops.global_size, config.teacher) == (0, 28, "x")


def test_a_run_from_random_weights_never_loads_the_teacher(made, tmp_path, loads, capsys):
    run = distil(made, tmp_path, "one", "--init=random")
    assert loads == []
    said = capsys.readouterr().out
    assert f"The teacher, {made.teacher}, is not asked: what it said of the crops of 2 epochs" in said
    assert "each seen 1.33 times" in said  # 24 of 9 images
    measured = json.loads((run / "measured.json").read_text())
    assert set(measured) == {"random", "trained"}
    assert measured["trained"]["patch_cosine"] != measured["random"]["patch_cosine"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert any("heldout/patch_cosine" in line for line in lines)
    assert (run / "features.jpg").is_file() and "parameters, millions" in said
    assert Dinov2Model.from_pretrained(run / "student").embed_dim == 64


def test_held_out_images_are_judged_by_the_teacher_itself(made, tmp_path):
    """Agreement is measured with live tokens: it equals that of a live run with the same student."""
    options = ("--init=random", "--objective.kind=features", "--optim.steps=1")
    stored = json.loads((distil(made, tmp_path, "stored", *options) / "measured.json").read_text())
    argv = [
        *OPTIONS.split(),
        *CROPS,
        f"--data={made.images}",
        f"--teacher={made.teacher}",
        f"--runs={tmp_path}",
        "--name=live",
    ]
    config, _ = distill_arguments([*argv, *options, "--evaluation.heldout_count=3"])
    distill.launch(config, resume=None)
    live = json.loads((tmp_path / "live/measured.json").read_text())
    # The student's own neighbours against the teacher's need no projector: all must be equal.
    assert stored["random"]["patch_neighbours"] == live["random"]["patch_neighbours"]
    assert abs(stored["random"]["patch_cosine"] - live["random"]["patch_cosine"]) < 0.2


def test_a_start_from_the_teacher_loads_it_and_lets_it_go(made, tmp_path, loads, monkeypatch):
    seen, train = [], session.train

    def look(runtime, lanes, *rest, **more):
        seen.append(lanes[0].state.module)
        train(runtime, lanes, *rest, **more)

    monkeypatch.setattr(session, "train", look)
    run = distil(made, tmp_path, "fitted", "--init=selected", "--evaluation.fit_images=18")  # all that is stored
    assert loads == [str(made.teacher)] * 2  # to see that it fits, and for the weights
    assert isinstance(seen[0].teacher.backbone, StoredBackbone)
    assert not [m for m in seen[0].teacher.modules() if isinstance(m, Dinov2Model)]
    measured = json.loads((run / "measured.json").read_text())
    assert measured["start"]["patch_cosine_centred"] > 0.9  # the teacher's own weights


def test_an_interrupted_run_goes_on_bit_for_bit(made, tmp_path, monkeypatch):
    expected = load_file(distil(made, tmp_path, "one", "--init=random") / "student/model.safetensors")
    with killed_after_step(5, monkeypatch):  # one step after its checkpoint, in the second stored epoch
        distil(made, tmp_path, "two", "--init=random")
    config, options = distill_arguments([f"--resume={tmp_path}/two"])
    assert config.targets == str(made.store)
    distill.launch(config, resume=options.resume)
    got = load_file(tmp_path / "two/student/model.safetensors")
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


def test_prototypes_take_heads_and_leave_the_backbone(made, tmp_path, loads):
    heads = [
        f"--{head}_head.{key}" for head in ("dino", "ibot") for key in ("prototypes=16", "hidden=24", "bottleneck=8")
    ]
    kind = ("--objective.kind=prototypes", "--heads=random", "--objective.patch_share=0.5", "--init=random")
    run = distil(made, tmp_path, "prototypes", *kind, *heads, "--crops.local_count=4", "--optim.accumulate=3")
    assert loads == [] and (run / "student/heads.safetensors").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["ibot"] > 0 for line in lines if "loss" in line)


def test_an_earlier_student_goes_on_without_the_teacher(made, tmp_path, loads):
    first = distil(made, tmp_path, "first", "--init=random", "--optim.steps=1") / "student"
    distil(made, tmp_path, "second", f"--init={first}", "--optim.steps=1", "--crops.local_count=0")
    assert set(loads) == {str(first)}
