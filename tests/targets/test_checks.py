"""Targets that are not those of a run are refused before anything is trained or written."""

import json
import shutil

import pytest
from PIL import Image
from target_stores import save_teacher

from dinov2_zoo.arguments import run
from dinov2_zoo.files import write_sealed
from dinov2_zoo.recipes import distill
from dinov2_zoo.targets.manifest import MANIFEST

OPTIONS = (
    "--student=vitti14 --init=random --optim.steps=2 --optim.warmup_steps=0 --loader.batch_size=3 --loader.workers=0 "
    "--evaluation.fit_images=6 --runtime.threads=1 --log.progress=false --runtime.precision=fp32"
)


@pytest.fixture
def distil(place, monkeypatch, capsys):
    """Runs the recipe as a command line would: exit code and standard error. Only the store says what data it is of."""
    monkeypatch.chdir(place.root)

    def call(*options):
        argv = [*OPTIONS.split(), f"--targets={place.store}", f"--runs={place.root}/runs", *options]
        with pytest.raises(SystemExit) as ended:
            run(lambda: distill.main(argv))
        return ended.value.code, capsys.readouterr().err

    return call


def refused(distil, place, words, *options):
    code, said = distil(*options)
    assert code == 2 and said.startswith("error: ") and "Traceback" not in said, said
    for part in (words,) if isinstance(words, str) else words:
        assert part in said, said
    assert not (place.root / "runs").exists()


SETTINGS = {
    "another crop size": (
        ["--crops.global_size=42"],
        "crops.global_size is 42, and the targets were stored with 28: use",
    ),
    "another jitter": (["--crops.jitter=0.1"], "--crops.jitter 0.8, or store them again"),
    "another seed": (["--runtime.seed=7"], "runtime.seed is 7, and the targets were stored with 0"),
    "more local crops": (["--crops.local_count=3"], "of 2 local crops: use 2 at most"),
    "another evaluated size": (["--evaluation.size=42"], "evaluation.size is 42"),
    "other images kept out": (
        ["--evaluation.heldout_count=2"],
        ("of 9 with other names than the 10", "heldout_count 3"),
    ),
    "no store": (["--targets=nowhere"], "nowhere holds no stored targets: make some with `dinov2-zoo store-targets"),
    "all that differs at once": (["--crops.flip=0", "--runtime.seed=7"], ("2 settings", "crops.flip", "runtime.seed")),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_other_settings(distil, place, case):
    options, words = SETTINGS[case]
    refused(distil, place, words, *options)


def test_other_images(distil, place):
    shutil.copytree(place.images, place.root / "renamed")
    (place.root / "renamed/00.png").rename(place.root / "renamed/99.png")
    refused(distil, place, "of other images: of 9 with other names than the 9", f"--data={place.root}/renamed")


def test_images_that_changed_under_their_names(distil, place):
    shutil.copytree(place.images, place.root / "changed")
    for path in (place.root / "changed").iterdir():
        Image.open(path).rotate(180).save(path)
    words = "its targets are of images that have changed since: get those images back, or store them again"
    refused(distil, place, words, f"--data={place.root}/changed")


def test_a_moved_folder_of_images_is_the_same(distil, place):
    shutil.copytree(place.images, place.root / "elsewhere")
    code, said = distil(f"--data={place.root}/elsewhere", "--name=moved")
    assert code == 0, said
    assert (place.root / "runs/moved/student/model.safetensors").is_file()


@pytest.mark.parametrize("init", ["random", "selected"])
def test_another_teacher(distil, place, init):
    save_teacher(place.root / "other", seed=1)
    words = (f"of another teacher than {place.root}/other", f"use --teacher {place.teacher}")
    refused(distil, place, words, f"--teacher={place.root}/other", f"--init={init}")


def edited(place, **changes):
    record = json.loads((place.store / MANIFEST).read_text())
    del record["sha256"]
    write_sealed(place.store / MANIFEST, record | changes)


def test_another_format(distil, place):
    edited(place, format=2)
    refused(distil, place, "has targets of format 2, this version reads 1: train with the version that wrote it")


def test_libraries_that_cut_other_crops(distil, place, monkeypatch):
    from dinov2_zoo.data import crops

    record = json.loads((place.store / MANIFEST).read_text())
    edited(place, versions=record["versions"] | {"torchvision": "0.1"})
    code, said = distil("--name=same")  # others that cut the same crops will do
    assert code == 0, said
    shutil.rmtree(place.root / "runs")
    whole = crops.apply_view
    monkeypatch.setattr(crops, "apply_view", lambda *a: whole(*a).roll(1, -1))
    refused(distil, place, ("were stored with torchvision 0.1, now", "install those versions, or store them again"))


def test_an_unfinished_store(distil, place):
    edited(place, whole=False)
    refused(distil, place, "is unfinished, 2 of 2 shards are there: run the same `dinov2-zoo store-targets` again")
    edited(place, whole=True)
    next(place.store.glob("epoch-*")).unlink()
    refused(distil, place, "is unfinished, 1 of 2 shards are there")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["epoch-001-000000.safetensors", "code.safetensors", "heldout.safetensors", "crops.safetensors"]
)
def test_a_flipped_bit(distil, place, name):
    flip(place.store / name, -5)
    refused(distil, place, f"{name} was changed since it was written")


def test_a_flipped_bit_in_the_manifest(distil, place):
    flip(place.store / MANIFEST, 100)
    refused(distil, place, "targets.json is damaged: get the store from where it was made")


@pytest.mark.parametrize("verify", ["true", "false"])
def test_a_store_that_is_cut_off(distil, place, verify):
    path = sorted(place.store.glob("epoch-*"))[1]
    path.write_bytes(path.read_bytes()[:-3])
    refused(distil, place, (f"{path.name} is damaged", "it alone is made again"), f"--verify_targets={verify}")


def test_a_shard_of_another_store(distil, place, made):
    from target_stores import store

    other = store(place, "--fit_images=17", to="other")
    name = "epoch-000-000000.safetensors"
    shutil.copy(other / name, place.store / name)
    refused(distil, place, f"{name} belongs to another store of targets")
