"""What a user can get wrong is said in a sentence that ends with what to do, before anything is written."""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photos

from dinov2_zoo import Dinov2Model
from dinov2_zoo.config import HeadConfig, ModelConfig
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.weights.heads import save_heads

ROOT = Path(__file__).resolve().parent.parent
SHAPE = ModelConfig(embed_dim=32, depth=2, num_heads=2, img_size=28)
OPTIONS = (
    "--crops.global_size=28 --crops.local_count=0 --loader.batch_size=4 --loader.workers=0 --evaluation.size=28 "
    "--evaluation.heldout_count=2 --student=vitti14 --optim.steps=2 --optim.warmup_steps=0 --runtime.threads=1 "
    "--log.progress=false --evaluation.labelled=null --init=random"
)


AUTOMATIC = (
    *("loader.batch_size", "loader.workers", "evaluation.heldout_count", "evaluation.size"),
    *("optim.steps", "optim.warmup_steps"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images, and teachers sound and broken."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "images").mkdir()
    photo = Image.fromarray(photos.astronaut())
    for i in range(8):
        photo.crop((50 * i, 0, 50 * i + 64, 64)).save(folder / f"images/{i}.png")
    (folder / "seven").mkdir()
    for i in range(7):
        (folder / f"seven/{i}.png").write_bytes((folder / f"images/{i}.png").read_bytes())
    (folder / "empty").mkdir()
    (folder / "documents").mkdir()
    (folder / "documents/letter.txt.pdf").write_bytes(b"%PDF-1.4")
    torch.manual_seed(0)
    Dinov2Model(SHAPE).save_pretrained(folder / "teacher")
    Dinov2Model(replace(SHAPE, patch_size=7)).save_pretrained(folder / "patch7")
    heads = [PrototypeHead(32, HeadConfig(16, 8, 4)).state_dict() for _ in range(2)]
    save_heads(folder / "patch7/heads.safetensors", *heads)
    whole = (folder / "teacher/model.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"encoder.weight": torch.zeros(3, 3)}, folder / "foreign.safetensors")
    with (folder / "pickled.pth").open("wb") as file:
        pickle.dump({"model": ROOT}, file)
    return folder


@pytest.fixture
def distil(monkeypatch, tmp_path, capsys):
    """Runs the recipe in this process as a command line would; gives (exit code, standard error)."""
    from dinov2_zoo.arguments import run
    from dinov2_zoo.recipes import distill

    monkeypatch.chdir(tmp_path)

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["distill.py", *OPTIONS.split(), *options])
        with pytest.raises(SystemExit) as ended:
            run(distill.main)
        return ended.value.code, capsys.readouterr().err

    return call


CASES = {
    "no images": (("--data={0}/empty",), "name the folder that holds images", "/empty"),
    "files of another kind": (("--data={0}/documents",), "name the folder that holds images", "1 .pdf file"),
    "no data named": (("--data=",), "name a folder, a .txt list", "image source is empty"),
    "a size that is no multiple": (("--crops.global_size=30",), "use 28 or 42", "30"),
    "grids that do not match": (
        ("--objective.kind=prototypes", "--teacher={0}/patch7"),
        "--objective.kind features",
        "14 and 7 pixels",
    ),
    "prototypes without heads": (("--objective.kind=prototypes",), "recipes/fit_heads.py", "has no heads"),
    "fewer images than a batch": (("--loader.batch_size=40",), "use at most 6, or auto", "6 images"),
    "several settings": (
        ("--loader.batch_size=40", "--evaluation.heldout_count=7"),
        "use at most 4, or auto",
        "loader.batch_size 40 is more than the 1 images",
    ),
    "too few images": (("--data={0}/seven",), "give 8 or more", "7 images"),
    "a length that is none": (("--time=soon",), "write 90s, 20m, 1h30m or 2d", "soon"),
    "two lengths": (("--time=1m", "--epochs=3"), "give one of them", "epochs and time"),
    "a truncated checkpoint": (("--teacher={0}/truncated.safetensors",), "get it again", "truncated.safetensors"),
    "a student that is too large to start from its teacher": (("--init=selected",), "--init random", "larger"),
    "a foreign checkpoint": (("--teacher={0}/foreign.safetensors",), "names", "encoder.weight (3, 3)"),
    "a pickle of more than tensors": (("--teacher={0}/pickled.pth",), "save", "pickled.pth"),
    "an unknown option": (("--optim.step=5",), "did you mean `optim.steps`?", "optim.step"),
    "an unknown student": (("--student=vits41",), "did you mean `vits14`?", "vits41"),
    "a teacher that is not there": (("--teacher=./nowhere",), "name a folder", "nowhere"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named_with_its_remedy_and_leaves_nothing_behind(distil, place, tmp_path, case):
    options, remedy, what = CASES[case]
    fixed = [f"--data={place}/images", f"--teacher={place}/teacher", f"--runs={tmp_path}/runs"]
    code, words = distil(*fixed, *(option.format(place) for option in options))
    assert code == 2 and words.startswith("error: ") and "Traceback" not in words, words
    assert remedy in words and what in words, words
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("count", [8, 20, 300])
def test_any_folder_of_eight_images_or_more_distils_with_automatic_settings(distil, place, tmp_path, count, capsys):
    images = tmp_path / "images"
    images.mkdir()
    photo = Image.fromarray(photos.astronaut())
    for i in range(count):
        photo.crop((i, i, i + 40, i + 40)).save(images / f"{i}.png")
    automatic = [f"--{name}=auto" for name in AUTOMATIC]
    fixed = [f"--data={images}", f"--teacher={place}/teacher", f"--runs={tmp_path}/runs", "--epochs=1"]
    code, words = distil(*fixed, *automatic)
    assert code == 0, words
    record = json.loads((tmp_path / "runs/vitti14-images/config.json").read_text())["config"]
    assert not {"auto"} & set(map(str, [*record["optim"].values(), *record["loader"].values()]))
    assert (tmp_path / "runs/vitti14-images/student/model.safetensors").is_file()


def test_a_hub_that_cannot_be_reached_points_to_the_offline_ways(distil, place, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, words = distil(f"--data={place}/images", "--teacher=somebody/nothing", f"--runs={tmp_path}/runs")
    assert code == 2 and "HF_HUB_OFFLINE" in words and "somebody/nothing" in words
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_another_run_is_not_touched(distil, place, tmp_path):
    fixed = [f"--data={place}/images", f"--teacher={place}/teacher", f"--runs={tmp_path}/runs", "--name=one"]
    run = tmp_path / "runs/one"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"config": {"name": "one", "teacher": "another"}}')
    code, words = distil(*fixed)
    assert code == 2 and "already holds a run: continue it with --resume, or choose another --name" in words
    code, words = distil(*fixed, "--resume")
    assert code == 2 and "teacher: another ->" in words
    assert [path.name for path in run.iterdir()] == ["config.json"]
