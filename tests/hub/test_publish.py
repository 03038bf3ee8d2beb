"""Publishing through the real client, against a Hub on this machine: dry by default, verified first, one commit."""

import json
import shutil
import subprocess

import pytest
import torch
import yaml
from fake_hub import serve
from huggingface_hub import constants, parse_eval_result_entries
from safetensors.torch import load_file

from dinov2_zoo.config import DistillConfig, to_dict
from dinov2_zoo.errors import ConfigError, HubError, ZooError
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.publish import gather, publish
from dinov2_zoo.models.zoo import model_config

NAME = "an-organisation/tiny"


@pytest.fixture
def run(tmp_path):
    """What a finished distillation leaves."""
    folder = tmp_path / "run"
    torch.manual_seed(0)
    Dinov2Model(model_config("vitti14_reg4")).save_pretrained(folder / "student")
    (folder / "student/projector.safetensors").write_bytes((folder / "student/model.safetensors").read_bytes())
    config = to_dict(DistillConfig(student="vitti14_reg4", data="/my/photos"))
    provenance = {"machine": "a machine, 2 cores", "git": "abc", "torch": "2", "python": "3"}
    (folder / "config.json").write_text(json.dumps({"config": config, "provenance": provenance}))
    (folder / "measured.json").write_text(json.dumps({"trained": {"knn": 0.75}}))
    (folder / "metrics.jsonl").write_text('{"step": 10, "images_per_second": 2.0}\n')
    (folder / "report.html").write_text("<html></html>")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    def point(address):
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files go by plain LFS here

    return point


def test_results_on_data_sets_of_the_hub_are_told_in_its_newer_form_too(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["config"]["evaluation"]["labelled"] = "hf:someone/beans:default@test"
    (run / "config.json").write_text(json.dumps(config))
    gather(run, tmp_path / "out", NAME)
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / "out/.eval_results/results.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("someone/beans", "k-NN, k = 20", 0.75)


def test_nothing_goes_up_unless_it_is_asked_for(run, tmp_path, hub):
    with serve({}, store=tmp_path / "hub") as (address, asked):
        hub(address)
        done = publish(run, NAME)
    assert asked == [] and done.address is None
    assert {"README.md", "SHA256SUMS", "record.json", "model.safetensors", "report.html"} <= done.files.keys()
    assert done.files["model.safetensors"] > 2e7 and any(check.what == "checksums" for check in done.checks)


def test_a_run_becomes_one_repository_that_loads_from_the_hub(run, tmp_path, hub):
    store = tmp_path / "hub"
    with serve({}, store=store) as (address, asked):
        hub(address)
        done = publish(run, NAME, really=True, private=True, token="hf_x")
        assert done.address == f"{address}/{NAME}"
    assert sum("/commit/" in path for path in asked) == 1
    made = json.loads((store / NAME / "created.json").read_text())
    assert made["organization"] == "an-organisation" and made.get("private", made.get("visibility")) in (
        True,
        "private",
    )
    folder = store / NAME / "main"
    card = (folder / "README.md").read_text()
    assert f'from_pretrained("{NAME}")' in card and f"hf-hub:{NAME}" in card and "value: 0.75" in card
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    with serve({NAME: folder}) as (address, _):
        hub(address)
        model = Dinov2Model.from_pretrained(NAME)
    expected = load_file(run / "student/model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_an_upload_that_was_cut_off_sends_only_what_is_missing(run, tmp_path, hub):
    sent = []

    def trouble(method, path, _):
        sent.append((method, path))
        return (403, b"") if "/commit/" in path and len(sent) < 30 and not done else None

    done = []
    with serve({}, store=tmp_path / "hub", trouble=trouble) as (address, _):
        hub(address)
        with pytest.raises(HubError, match="hf auth login"):
            publish(run, NAME, really=True, token="hf_x")
        first = [path for method, path in sent if method == "PUT"]
        sent.clear()
        done.append(True)
        publish(run, NAME, really=True, token="hf_x")
        again = [path for method, path in sent if method == "PUT"]
    assert len(first) >= 2 and again == []


def test_another_branch_and_a_plain_saved_model(run, tmp_path, hub):
    with serve({}, store=tmp_path / "hub") as (address, _):
        hub(address)
        done = publish(run / "student", NAME, really=True, revision="v1", token="hf_x")
    assert done.address.endswith("/tree/v1") and (tmp_path / "hub" / NAME / "v1/model.safetensors").exists()
    assert "README.md" not in done.files


def test_a_model_that_is_not_what_it_says_does_not_go_up(run, tmp_path, hub):
    (run / "student/transformers_model.safetensors").unlink()
    with serve({}, store=tmp_path / "hub") as (address, asked):
        hub(address)
        with pytest.raises(ZooError, match="is not what it says"):
            publish(run, NAME, really=True)
    assert asked == []
    shutil.rmtree(run / "student")
    with pytest.raises(ConfigError, match="holds no student"):
        publish(run, NAME)
