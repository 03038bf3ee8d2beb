"""A store is the same however it was made: at once, in parts, by several processes, after a kill."""

import shutil
import signal
import subprocess
import sys

import pytest
from safetensors import safe_open
from sessions import ACCELERATE, ROOT, environment, finish, wait_for
from target_stores import options, store

from dinov2_zoo.config import LoaderConfig
from dinov2_zoo.data.heldout import split_heldout
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.errors import ConfigError, ZooError
from dinov2_zoo.hub.teacher import load_teacher
from dinov2_zoo.targets import layout, making
from dinov2_zoo.targets.making import teach_shards
from dinov2_zoo.targets.manifest import read_manifest
from dinov2_zoo.targets.store import open_store

RECIPE = str(ROOT / "recipes/store_targets.py")


def shards(folder):
    """What is in a store's shards. (safetensors writes a header's entries in any order: bytes of files may differ.)"""
    found = {}
    for path in folder.glob("epoch-*"):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
            found[path.name] = (file.metadata(), tensors)
    return found


def test_the_size_is_said_first_and_what_is_lost_before_the_pass(place, capsys):
    shutil.rmtree(place.store)
    store(place)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        "9 images x 2 epochs, 2 crops of 4 patches and 2 crops of 1 patches; 12 bytes a patch token, 64"
    )
    assert "of 3 held-out images: cosine 1.0000 of class" in said[1] and said[2].endswith(
        f"distill --targets {place.store}"
    )
    agreement = open_store(str(place.store)).manifest.agreement
    assert agreement["class_cosine_centred"] > 0.999 > 0.95 > agreement["patch_cosine_centred"] > 0.3


def test_a_store_that_lacks_shards_makes_these_alone_and_the_same(place, capsys, monkeypatch):
    before = shards(place.store)
    gone, cut = sorted(before)
    (place.store / gone).unlink()
    (place.store / cut).write_bytes((place.store / cut).read_bytes()[:-1])
    made = []
    monkeypatch.setattr(making, "write_shard", lambda path, *a, **k: (made.append(path.name), write(path, *a, **k)))
    store(place)
    assert made == [gone, cut] and shards(place.store) == before
    made.clear()
    capsys.readouterr()
    store(place)
    assert not made and "of them are there." in capsys.readouterr().out


write = making.write_shard


def test_more_epochs_are_added_to_a_whole_store(place):
    before = shards(place.store)
    longer = shards(store(place, "--epochs=4"))
    assert len(longer) == 4 and before.items() <= longer.items()
    assert open_store(str(place.store)).epochs == 4
    store(place, "--epochs=1")  # fewer: what is there stays
    assert open_store(str(place.store)).epochs == 4


def test_each_process_writes_its_shards_and_together_they_are_the_same(place):
    before, opened = shards(place.store), open_store(str(place.store))
    images, _ = split_heldout(open_source(str(place.images)), 3, 0)
    teacher = load_teacher(str(place.teacher))
    every = list(opened.manifest.layout.shards())
    for name in before:
        (place.store / name).unlink()
    for rank in (1, 0):
        mine, counted = every[rank::2], []
        counted += teach_shards(
            opened,
            mine,
            images,
            lambda g: [o.tokens for o in teacher(g)],
            device=teacher.backbone.device,
            loader=LoaderConfig(4, 1),
        )
        assert sum(counted) == sum(shard.count for shard in mine)
    assert shards(place.store) == before


def test_a_damaged_image_is_listed_and_a_run_goes_without_it(place, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "SHARD", 4)
    shutil.copytree(place.images, tmp_path / "images")
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    kept = [i for i in split_heldout(open_source(str(place.images)), 3, 0)[0].indices]
    (tmp_path / "images" / names[kept[2]]).write_bytes(b"no image")
    place.images = tmp_path / "images"
    folder = store(place, "--loader.max_bad_share=0.2", to="damaged")
    assert names[kept[2]] in (folder / "skipped.jsonl").read_text()
    assert len(shards(folder)) == 2 * 3
    reader = open_store(str(folder)).reader(2)
    for epoch in range(2):
        assert [i for i in range(9) if reader.read(epoch, i) is None] == [2]
        assert [codes.shape[0] for codes in reader.read(epoch, 3)] == [2, 2]


def test_too_little_room_is_said_before_anything_is_written(place, monkeypatch):
    shutil.rmtree(place.store)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(ConfigError, match=r"need 0\.0 MB and the disk of .*store has 0\.0 MB left: .*fewer --epochs"):
        store(place)
    assert not place.store.exists()


def test_a_folder_of_other_things_or_another_store_is_not_touched(place, tmp_path):
    before = {path.name: path.read_bytes() for path in place.store.iterdir()}
    with pytest.raises(ConfigError, match="ask for the same, or choose another folder with --to") as error:
        store(place, "--runtime.seed=1", "--directions=9", "--crops.flip=0")
    assert all(
        words in str(error.value) for words in ("layout.directions: 12 -> 9", "crops.flip: 0.5 -> 0", "seed: 0 -> 1")
    )
    assert {path.name: path.read_bytes() for path in place.store.iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").touch()
    with pytest.raises(ConfigError, match="holds other files but no targets: choose another folder with --to"):
        store(place, to="other")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--directions=65", "directions 65 is more than the teacher's 64 channels: use 64 at most"),
        ("--crops.global_size=30", "use 28 or 42"),
        ("--evaluation.size=30", "use 28 or 42"),
        ("--class_directions=40", "36 class tokens are too few to find 40 principal directions of: give more images"),
    ],
)
def test_settings_that_cannot_work(place, option, words):
    shutil.rmtree(place.store)
    with pytest.raises(ZooError, match=words.replace("(", r"\(")):
        store(place, option)
    assert not list(place.store.glob("[!.]*"))


def start(place, launcher, *more, to):
    command = [*launcher, RECIPE, *options(place, *more, to=to)]
    return subprocess.Popen(
        command, env=environment(HF_HUB_OFFLINE="1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on_and_the_store_is_the_same(place, made):
    many = "--epochs=80"
    process = start(place, [sys.executable], many, to="killed")
    folder = place.root / "killed"
    wait_for(lambda: len(shards(folder)) > 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = shards(folder)
    assert 3 < len(there) < 80 and not read_manifest(folder).whole
    whole = store(place, many, to="whole")
    assert there.items() <= shards(whole).items()
    code, words = finish(start(place, [sys.executable], many, to="killed"))
    assert code == 0 and "of them are there." in words
    assert shards(folder) == shards(whole)


@pytest.mark.slow
def test_two_processes_write_the_store_of_one(place):
    launcher = [*ACCELERATE, str(ROOT / "recipes/configs/accelerate/cpu.yaml"), "--num_processes", "2"]
    code, words = finish(start(place, launcher, to="pair"))
    assert code == 0, words
    assert shards(place.root / "pair") == shards(place.store)
    assert open_store(str(place.root / "pair")).manifest.agreement == open_store(str(place.store)).manifest.agreement
