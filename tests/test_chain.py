"""The whole project in miniature, on real photos: pretrain, distil by the teacher's own heads, go up in resolution."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data as photos
from stopped_training import killed_after_step

from dinov2_zoo import Dinov2Model
from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.errors import CheckpointError, ConfigError
from dinov2_zoo.hub.build import build_self_distillation

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--crops.global_size 56 --crops.local_size 28 --crops.local_count 2 --loader.batch_size 6 --loader.workers 0"
for head in ("dino_head", "ibot_head"):
    SMALL += f" --{head}.prototypes 32 --{head}.hidden 16 --{head}.bottleneck 8"
SMALL += " --optim.warmup_steps 1 --optim.freeze_last_layer_steps 0 --evaluation.size 56 --runtime.precision fp32"
SMALL += " --log.progress false --runtime.threads 1"


@pytest.fixture(scope="module")
def recipes():
    names = ("pretrain", "distill", "fit_heads", "adapt_resolution")
    return {name: importlib.import_module(f"dinov2_zoo.recipes.{name}") for name in names}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Cuttings of four photos in four folders, which are classes where labels are asked for."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        (folder / name).mkdir()
        photo = Image.fromarray(getattr(photos, name)()).resize((256, 256))
        for i in range(9):
            left, top = i % 3 * 85, i // 3 * 85
            photo.crop((left, top, left + 85, top + 85)).save(folder / name / f"{i}.png")
    return folder


def settings(kind, preset, runs, images, name, *options):
    argv = ["--config", str(ROOT / "recipes/configs" / preset), *SMALL.split(), "--runs", str(runs), "--name", name]
    return parse(kind, [*argv, "--data", str(images), *options])[0]


@pytest.fixture(scope="module")
def teacher(recipes, images, tmp_path_factory):
    runs = tmp_path_factory.mktemp("chain")
    labelled = ("--evaluation.labelled", str(images), "--evaluation.labelled_size", "56", "--checkpoint.every", "2")
    config = settings(PretrainConfig, "pretrain_demo.yaml", runs, images, "teacher", "--optim.steps", "4", *labelled)
    recipes["pretrain"].launch(config, resume=None)
    return runs / "teacher", config


@pytest.fixture(scope="module")
def student(recipes, images, teacher):
    folder, _ = teacher
    prototypes = ("--objective.kind", "prototypes", "--init", "random", "--evaluation.heldout_count", "2")
    options = ("--teacher", str(folder / "teacher"), *prototypes, "--optim.steps", "3", "--evaluation.fit_images", "6")
    config = settings(
        DistillConfig, "demo.yaml", folder.parent, images, "student", *options, "--evaluation.labelled=null"
    )
    recipes["distill"].launch(config, resume=None)
    return folder.parent / "student"


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_pretraining_leaves_a_teacher_with_its_heads(teacher):
    folder, _ = teacher
    model = Dinov2Model.from_pretrained(folder / "teacher")
    assert model.embed_dim == 192 and model.num_registers == 4
    pixels = torch.randn(1, 3, 56, 70)
    other = timm.create_model(f"local-dir:{folder / 'teacher'}", pretrained=True).eval()
    torch.testing.assert_close(model(pixels), other(pixels), rtol=0, atol=1e-4)
    heads = load_file(folder / "teacher/heads.safetensors")
    assert heads["dino_head.last_layer.weight_v"].shape == (32, 8)
    assert {"start", "trained"} == json.loads((folder / "measured.json").read_text()).keys()
    assert (folder / "report.html").is_file()


def test_health_is_logged_beside_the_losses(teacher):
    last = lines(teacher[0])[-1]
    assert {"loss", "dino", "ibot", "koleo", "health/information", "health/rank"} <= last.keys()
    assert 0 < last["health/prototypes_used"] <= 1


def test_an_interrupted_pretraining_goes_on_bit_for_bit(recipes, teacher, monkeypatch, tmp_path):
    folder, config = teacher
    argv = {"runs": str(tmp_path), "name": "again"}
    config = type(config)(**{**{n: getattr(config, n) for n in config.__dataclass_fields__}, **argv})
    with killed_after_step(2, monkeypatch):
        recipes["pretrain"].launch(config, resume=None)
    recipes["pretrain"].launch(config, resume="auto")
    for file in ("model.safetensors", "heads.safetensors"):
        expected, got = load_file(folder / "teacher" / file), load_file(tmp_path / "again/teacher" / file)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_student_learns_by_its_teachers_own_heads(student):
    terms = lines(student)[-1]
    assert {"dino", "ibot", "koleo"} <= terms.keys()
    model = Dinov2Model.from_pretrained(student / "student")
    assert model(torch.randn(1, 3, 56, 56)).shape == (1, 192)
    assert load_file(student / "student/heads.safetensors")["ibot_head.last_layer.weight_v"].shape == (32, 8)


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_finished_run_goes_up_in_resolution(recipes, teacher, student, which):
    run = teacher[0] if which == "teacher" else student
    adapted = recipes["adapt_resolution"].AdaptConfig(run=str(run), size=84, steps=2).adapted()
    assert adapted.optim.steps == 2 and adapted.optim.warmup_steps <= 1
    if which == "student":  # two steps need not be better than none, and the guard would take them back
        adapted = replace(adapted, guard=False)
    recipes["pretrain" if which == "teacher" else "distill"].launch(adapted, resume=None)
    before = Dinov2Model.from_pretrained(run / which)
    after = Dinov2Model.from_pretrained(run.with_name(f"{which}_84") / which)
    assert (before.config.img_size, after.config.img_size) == (56, 84)
    assert before.pos_embed.shape[1] == 16 and after.pos_embed.shape[1] == 36
    # It went on from the weights that were there, gently.
    change = (after.blocks[0].attn.qkv.weight - before.blocks[0].attn.qkv.weight).norm()
    assert 0 < change < 0.1 * before.blocks[0].attn.qkv.weight.norm()


def test_heads_are_fitted_on_a_frozen_backbone_and_belong_to_it(recipes, images, teacher, tmp_path):
    backbone = teacher[0] / "teacher"
    alone = tmp_path / "backbone"
    Dinov2Model.from_pretrained(backbone).save_pretrained(alone)
    config = settings(
        PretrainConfig, "fit_heads.yaml", tmp_path, images, "heads", "--init", str(alone), "--optim.steps", "2"
    )
    recipes["pretrain"].launch(config, resume=None)
    fitted = tmp_path / "heads/teacher"
    before, after = load_file(alone / "model.safetensors"), load_file(fitted / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)

    other = settings(PretrainConfig, "pretrain_demo.yaml", tmp_path, images, "x", "--init", str(backbone))
    (backbone / "heads.safetensors").rename(tmp_path / "kept")
    try:
        (backbone / "heads.safetensors").write_bytes((fitted / "heads.safetensors").read_bytes())
        build_self_distillation(other)  # the same backbone: they fit
        changed = Dinov2Model.from_pretrained(alone)
        with torch.no_grad():
            changed.norm.weight.mul_(1.5)
        changed.save_pretrained(tmp_path / "changed")
        (tmp_path / "changed/heads.safetensors").write_bytes((fitted / "heads.safetensors").read_bytes())
        wrong = settings(
            PretrainConfig, "pretrain_demo.yaml", tmp_path, images, "x", "--init", str(tmp_path / "changed")
        )
        with pytest.raises(CheckpointError, match="another backbone"):
            build_self_distillation(wrong)
    finally:
        (tmp_path / "kept").replace(backbone / "heads.safetensors")


@pytest.mark.parametrize(
    "options, words",
    [
        (("--loader.batch_size", "1"), "KoLeo without neighbours"),
        (("--masks.smallest_block", "16"), "do not fit inside 4 x 4"),
        (("--masks.ratios", "[0.01, 0.5]"), "hides none"),
        (("--crops.local_size", "30"), "not a multiple of the patch"),
        (("--freeze_backbone", "true"), "needs a backbone"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(recipes, images, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        config = settings(PretrainConfig, "pretrain_demo.yaml", tmp_path, images, "bad", *options)
        recipes["pretrain"].launch(config, resume=None)
    assert not (tmp_path / "bad").exists()


def test_a_run_that_is_not_there_or_not_finished_cannot_be_adapted(recipes, tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        recipes["adapt_resolution"].AdaptConfig(run=str(tmp_path)).adapted()
    (tmp_path / "config.json").write_text(json.dumps({"config": {"teacher": "x"}}))
    with pytest.raises(ConfigError, match="has not finished"):
        recipes["adapt_resolution"].AdaptConfig(run=str(tmp_path)).adapted()
