"""The distillation recipe with two teachers, from its command line to a student; mistakes are named before training."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from small_teacher import images_and_teacher
from stopped_training import killed_after_step

from dinov2_zoo import Dinov2Model
from dinov2_zoo.config import DistillConfig, ModelConfig
from dinov2_zoo.config.teachers import named_teachers
from dinov2_zoo.errors import CheckpointError, ConfigError, HubError
from dinov2_zoo.models import zoo
from dinov2_zoo.recipes import distill_arguments

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    "--crops.global_size=56 --crops.local_count=1 --crops.local_size=28 --loader.batch_size=4 --loader.workers=0 "
    "--optim.steps=4 --optim.warmup_steps=1 --checkpoint.every=2 --evaluation.heldout_count=4 "
    "--evaluation.fit_images=8 --init_images=8 --evaluation.labelled=null --evaluation.size=56 --runtime.threads=1 "
    "--runtime.precision=fp32 --log.every=1 --log.progress=false --student=tiny14 --teachers.drop=0.5 "
    "--finish.share=0.5 --finish.sizes=[56,84] --objective.features.standardise=phi-s"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images, a teacher, and a file of weights for another."""
    folder = tmp_path_factory.mktemp("teachers")
    images_and_teacher(folder)
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), folder / "cnn.pth")
    return folder


@pytest.fixture(scope="module")
def distil(place):
    """Runs the recipe as a command line would."""
    from dinov2_zoo.recipes import distill

    def call(runs, *more, resume=None):
        pair = f"--teacher=vit={place}/teacher,cnn=timm:mobilenetv3_small_050@{place}/cnn.pth"
        fixed = [f"--config={ROOT}/recipes/configs/demo.yaml", f"--data={place}/images", pair]
        config, _ = distill_arguments([*fixed, "--name=x", f"--runs={runs}", *OPTIONS.split(), *more])
        distill.launch(config, resume=resume)
        return runs / "x"

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, "tiny14", ModelConfig(16, 2, 1, layer_scale=1.0))
        yield call


@pytest.fixture(scope="module")
def run(distil, tmp_path_factory):
    """A whole run."""
    return distil(tmp_path_factory.mktemp("runs"))


def test_a_student_of_two_teachers_has_a_projector_for_each_and_is_measured_against_both(run):
    assert sorted(p.name for p in (run / "student").glob("projector*")) == [
        "projector-cnn.safetensors",
        "projector.safetensors",
    ]
    first, second = (load_file(run / f"student/projector{name}.safetensors") for name in ("", "-cnn"))
    assert first["patches.weight"].shape == (48, 16) and second["class_token.weight"].shape == (1024, 16)
    assert second["patches.weight"].shape == (288, 16)
    assert Dinov2Model.from_pretrained(run / "student").embed_dim == 16
    measured = json.loads((run / "measured.json").read_text())
    assert list(measured) == ["random", "start", "trained"]
    assert all({"patch_cosine_centred", "patch_cosine_centred/cnn"} <= found.keys() for found in measured.values())
    page = (run / "report.html").read_text()
    assert "cnn, patches: cosine, mean removed" in page and "the teacher is vit" in page


def test_the_log_tells_each_teachers_terms_where_it_was_asked(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    asked = [{name.partition("/")[2] for name in line if name.startswith("patch/")} for line in lines]
    assert asked[0] == {"vit", "cnn"} and any(len(names) == 1 for names in asked)  # as drawn from this seed


def test_a_run_that_was_killed_goes_on_bit_for_bit(distil, run, tmp_path, monkeypatch):
    with killed_after_step(3, monkeypatch):
        distil(tmp_path)
    assert not (tmp_path / "x/student").exists()
    distil(tmp_path, resume="auto")
    for file in ("model", "projector", "projector-cnn"):
        mine, theirs = (load_file(folder / f"student/{file}.safetensors") for folder in (tmp_path / "x", run))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine), file


def test_teachers_are_told_from_the_path_of_one():
    pair = named_teachers("dino=facebook/dinov2-base, my-clip=timm:a.b@/x=y.pth")
    assert pair == {"dino": "facebook/dinov2-base", "my-clip": "timm:a.b@/x=y.pth"} and next(iter(pair)) == "dino"
    for one in ("facebook/dinov2-base", "runs/a=b/student", "a,b.pth", "./a=b"):
        assert named_teachers(one) == {}
        assert DistillConfig(teacher=one).main_teacher == one
    config = DistillConfig(teacher="a=x/y,b=timm:z,c=w")
    assert config.main_teacher == "x/y" and config.further_teachers == {"b": "timm:z", "c": "w"}
    assert config.teacher_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--teacher=a=x,b=x"], "has the source x more than once"),
        (["--teacher=a=x,a=y"], "has the name a more than once"),
        (["--teacher=a=x,b="], "teacher b has no source: write b=SOURCE"),
        (["--teacher=a=x,y"], "names some teachers only"),
        (["--teacher=a=x"], "names one teacher alone: write --teacher x"),
        (["--teacher=a=timm:x,b=y"], "the first of several, must be a DINOv2 network"),
        (["--teacher=a=x,b=y", "--objective.kind=prototypes"], "prototypes are those of one teacher"),
        (["--teacher=a=x,b=y", "--teachers.weights=1,2,3"], "one for each of the 2 teachers, not 3"),
        (["--teacher=a=x,b=y", "--teachers.weights=1,0"], "weights must be above 0"),
        (["--teacher=a=x,b=y", "--teachers.drop=1"], "less than 1"),
        (["--teacher=x", "--teachers.drop=0.5"], "are of several teachers, and there is one"),
    ],
)
def test_a_mistake_is_named_before_anything_is_loaded(options, words):
    with pytest.raises(ConfigError, match=words):
        distill_arguments(["PHOTOS", *options])


def test_stored_targets_are_of_one_teacher():
    with pytest.raises(ConfigError, match="stored targets are of one teacher"):
        DistillConfig(teacher="a=x,b=y", targets="store")
    with pytest.raises(ConfigError, match="a store is of one teacher"):
        from dinov2_zoo.config.targets import StoreTargetsConfig

        StoreTargetsConfig(teacher="a=x,b=y")


@pytest.mark.parametrize(
    ("second", "more", "words"),
    [
        ("timm:mobilenetv3_small_050@{place}/none.pth", (), "none.pth does not exist"),
        ("timm:mobilenetv3_small_075@{place}/cnn.pth", (), "does not hold the weights of timm's mobilenetv3_small_075"),
        ("timm:no_such_network@{place}/cnn.pth", (), "timm cannot load no_such_network"),
    ],
)
def test_a_teacher_that_will_not_do_is_named_before_training(distil, place, tmp_path, second, more, words):
    pair = f"--teacher=a={place}/teacher,b={second.format(place=place)}"
    with pytest.raises((CheckpointError, HubError), match=words):
        distil(tmp_path / "runs", pair, *more)
    assert not (tmp_path / "runs").exists()
