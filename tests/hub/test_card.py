"""Cards are rendered from records alone: what the repository holds is what its records give, and nothing is made up."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, to_dict
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.hub.card import empty_record, record_of_run, render, training_hours
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.models.zoo import model_config

CARDS = sorted((Path(__file__).resolve().parent.parent.parent / "model_cards").glob("*.json"))


@pytest.mark.parametrize("file", CARDS, ids=lambda file: file.stem)
def test_every_card_is_what_its_record_gives(file):
    again = "run python model_cards/render.py"
    assert file.with_suffix(".md").read_text() == render(json.loads(file.read_text())), again


def test_every_size_has_a_card_and_every_card_a_record():
    names = {file.stem for file in CARDS}
    assert {f"vit{size}14_reg4" for size in ("ti", "s", "b", "l", "g")} <= names
    assert {file.stem for file in CARDS[0].parent.glob("*.md")} == names


def test_what_was_not_measured_says_so_and_published_figures_stand_apart():
    card = render(empty_record("vitb14_reg4"))
    assert "| k-NN | ImageNet-1k | top-1, % | not measured | 82 |" in card
    assert "| linear probe | ImageNet-1k | top-1, % | not measured | 84.6 |" in card and "Not measured." in card
    assert "| weights | none yet" in card and "model-index" not in card
    assert "86,582,784 parameters" in card  # Meta's less the class position that we fold


@pytest.fixture
def run(tmp_path):
    """What a finished run leaves."""
    config = to_dict(DistillConfig(student="vitti14", teacher="facebook/dinov2-small", data="/my/photos"))
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
    batch = DistillConfig().loader.batch_size
    assert training_hours(*hours_of(run)) == pytest.approx(10 * batch / 2 / 3600 + 10 * batch / 4 / 3600)
    card = render(record)
    header = yaml.safe_load(card.split("---")[1])
    (knn, patches, classes) = header["model-index"][0]["results"]
    assert knn["metrics"] == [{"type": "accuracy", "value": 0.75}] and len(patches["metrics"]) == 2
    assert classes["dataset"]["name"] == "held out of /my/photos"
    command = next(line for line in card.splitlines() if line.startswith("python recipes/distill.py"))
    again, _ = parse(DistillConfig, shlex.split(command)[2:])
    assert json.loads(json.dumps(to_dict(again))) == json.loads((run / "config.json").read_text())["config"]
    assert "rules of their own" in card  # no registers


def hours_of(run):
    config = json.loads((run / "config.json").read_text())["config"]
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()], config


def test_an_unfinished_run_has_no_card(run):
    (run / "measured.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks measured\.json"):
        record_of_run(run)
