"""`dinov2-zoo embed` writes features with what they are of; `search` finds a photo among them, with that model only."""

import json

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from skimage import data as photos

from dinov2_zoo import Dinov2Model, __version__
from dinov2_zoo.arguments import call
from dinov2_zoo.commands import COMMANDS
from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError, ConfigError, DataError
from dinov2_zoo.hub.features_file import read_features, write_features
from dinov2_zoo.hub.search import nearest

SHAPE = ModelConfig(64, 2, 1, img_size=56, num_registers=4)
NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def run(command, *words):
    call(COMMANDS[command], [str(word) for word in words], name=command)


@pytest.fixture
def place(tmp_path, lively, monkeypatch):
    """Four photos, a broken one, and two models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        Image.fromarray(getattr(photos, name)()).save(tmp_path / f"photos/{name}.png")
    (tmp_path / "photos/broken.png").write_bytes(b"?")
    for seed, name in enumerate(("model", "another")):
        Dinov2Model.from_state(SHAPE, lively(SHAPE, seed).state_dict()).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.fixture
def file(place, capsys):
    """Features of the photos."""
    run("embed", "photos", "features.parquet", "--model", "model", "--batch-size", "3")
    return place / "features.parquet"


def test_the_file_holds_what_embed_gives_and_what_made_it(place, file, capsys):
    wanted = Dinov2Model.from_pretrained(place / "model").embed(str(place / "photos"), return_names=True)
    features, names, origin = read_features(file)
    torch.testing.assert_close(features, wanted.features, rtol=0, atol=1e-5)
    assert names == [f"photos/{name}.png" for name in NAMES]
    assert (origin.model, origin.size, origin.version) == (str(place / "model"), 56, __version__)
    table = pyarrow.parquet.read_table(file)
    assert str(table.schema.field("feature").type) == "fixed_size_list<element: float>[64]"
    assert json.loads(table.schema.metadata[b"dinov2_zoo"])["size"] == 56
    assert {path.name for path in place.iterdir()} == {"photos", "model", "another", "features.parquet"}


def test_what_was_found_and_left_out_is_said(place, capsys):
    (place / "photos/notes.txt").touch()
    run("embed", "photos", "features.parquet", "--model", "model", "--size", "28")
    said = capsys.readouterr().out
    assert "5 photos; 1 other file left out." in said
    assert "1 of 5 photos could not be read:\n  photos/broken.png: " in said
    assert "features.parquet: 4 photos, 64 numbers each; model at 28 pixels." in said


def test_half_precision_is_half_the_size_and_the_same_search(place, file):
    run("embed", "photos", "half.parquet", "--model", "model", "--precision", "fp16")
    field = pyarrow.parquet.read_table("half.parquet").schema.field("feature")
    assert str(field.type) == "fixed_size_list<element: halffloat>[64]"
    whole, half = (nearest(path, "photos/coffee.png") for path in (file, place / "half.parquet"))
    assert [name for name, _ in whole] == [name for name, _ in half]


def test_a_photo_finds_itself_first_and_then_the_most_alike(place, file, capsys):
    capsys.readouterr()
    run("search", file, "photos/coffee.png", "-k", "2")
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines() if ".png" in line and "Nearest" not in line]
    assert lines[0] == ["photos/coffee.png", "1.000"] and len(lines) == 2
    features, names, origin = read_features(file)
    assert origin.size == 56
    cosines = torch.cosine_similarity(features[names.index("photos/coffee.png")][None], features)
    found = nearest(file, Image.fromarray(photos.coffee()), count=99)
    assert [name for name, _ in found] == [names[i] for i in cosines.argsort(descending=True)]
    assert [value for _, value in found] == pytest.approx(cosines.sort(descending=True).values.tolist(), abs=1e-5)


def test_the_size_of_the_file_is_that_of_the_search(place, file):
    run("embed", "photos", "small.parquet", "--model", "model", "--size", "28")
    assert nearest(place / "small.parquet", "photos/coffee.png")[0] == ("photos/coffee.png", pytest.approx(1, abs=1e-5))


def test_names_that_look_like_markup_are_shown_whole(place, file, capsys):
    (place / "[red]").mkdir()
    (place / "photos/coffee.png").rename(place / "[red]/c.png")
    run("embed", "[red]", "odd.parquet", "--model", "model")
    capsys.readouterr()
    run("search", "odd.parquet", "[red]/c.png")
    assert capsys.readouterr().out.count("[red]/c.png") == 2


def test_a_model_that_moved_is_named_with_the_option(place, file):
    (place / "model").rename(place / "moved")
    with pytest.raises(CheckpointError, match=r"made with .*/model, which is not there any more: .*--model"):
        run("search", file, "photos/coffee.png")
    run("search", file, "photos/coffee.png", "--model", "moved")
    with pytest.raises(
        CheckpointError, match=r"another has other weights than the model that made .*--model, or embed"
    ):
        run("search", file, "photos/coffee.png", "--model", "another")


def test_a_file_that_is_there_stays_unless_told(place, file):
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=r"features\.parquet is there already: add --overwrite"):
        run("embed", "photos", file, "--model", "another")
    assert file.read_bytes() == before
    run("embed", "photos", file, "--model", "another", "--overwrite")
    assert read_features(file)[2].model == str(place / "another")


def test_a_target_that_cannot_be_written_is_said_before_the_work(place):
    with pytest.raises(ConfigError, match=r"not features\.csv: name it features\.parquet"):
        run("embed", "photos", "features.csv", "--model", "model")
    with pytest.raises(
        ConfigError, match=r"photos/coffee\.png/f\.parquet cannot be written \(.*\): name another folder"
    ):
        run("embed", "photos", "photos/coffee.png/f.parquet", "--model", "model")
    with pytest.raises(DataError, match=r"no file or folder nowhere: name a photo"):
        run("embed", "nowhere", "f.parquet", "--model", "model")
    assert not (place / "f.parquet").exists()


def test_a_write_that_fails_leaves_the_earlier_file(place, file, monkeypatch):
    features, names, origin = read_features(file)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\): make room"):
        write_features(file, features * 2, names, origin)
    monkeypatch.undo()
    assert torch.equal(read_features(file)[0], features)


def test_bad_questions_say_what_to_do(place, file):
    (place / "x.parquet").write_bytes(b"?")
    pyarrow.parquet.write_table(pyarrow.table({"name": ["a"]}), place / "y.parquet")
    for words, error, message in (
        (("gone.parquet", "photos/coffee.png"), DataError, r"no file gone\.parquet: make one with `dinov2-zoo embed"),
        (("x.parquet", "photos/coffee.png"), DataError, r"x\.parquet is no file of features"),
        (("y.parquet", "photos/coffee.png"), DataError, r"y\.parquet is no file of features"),
        ((file, "photos/none.png"), DataError, r"no file or folder photos/none\.png"),
        ((file, "photos/*e*.png"), ConfigError, r"photos are too many to look for: name one"),
        ((file, "photos/coffee.png", "-k", "0"), ConfigError, r"0 photos are none: ask for 1 or more"),
    ):
        with pytest.raises(error, match=message):
            run("search", *words)
