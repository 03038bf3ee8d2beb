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

from dinov2_zoo.config import DistillConfig, LoaderConfig, to_dict
from dinov2_zoo.errors import ConfigError, HubError, ZooError
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.publish import gather, publish
from dinov2_zoo.models.zoo import model_config
from dinov2_zoo.weights.checksums import write_checksums

NAME = "an-organisation/tiny"


@pytest.fixture
def run(tmp_path):
    """What a finished distillation on a user's photos leaves."""
    folder = tmp_path / "home/ada/runs/mine"
    photos = tmp_path / "home/ada/photos of grandmother"
    photos.mkdir(parents=True)
    (photos / "grandmother.jpg").touch()
    torch.manual_seed(0)
    Dinov2Model(model_config("vitti14_reg4")).save_pretrained(folder / "student")
    (folder / "student/projector.safetensors").write_bytes((folder / "student/model.safetensors").read_bytes())
    write_checksums(folder / "student")
    home = tmp_path / "home/ada"
    config = to_dict(
        DistillConfig(
            name="mine",
            runs=str(folder.parent),
            student="vitti14_reg4",
            data=str(photos),
            teacher=str(home / "teacher"),
            heads=str(home / "heads.safetensors"),
            loader=LoaderConfig(batch_size=8),
        )
    )
    provenance = {"machine": "a machine, 2 cores", "git": "abc", "torch": "2", "python": "3"}
    (folder / "config.json").write_text(json.dumps({"config": config, "provenance": provenance}))
    (folder / "measured.json").write_text(json.dumps({"trained": {"knn": 0.75}}))
    (folder / "metrics.jsonl").write_text('{"step": 10, "images_per_second": 2.0}\n')
    (folder / "report.html").write_text(f"<html>{photos}/grandmother.jpg</html>")
    (folder / "features.jpg").write_bytes(b"a picture of grandmother.jpg")
    (folder / "evaluation").mkdir()
    entry = {"task": "knn", "headline": "top1", "metrics": {"top1": 0.5}, "data": {"source": str(photos)}}
    (folder / "evaluation/knn.json").write_text(json.dumps(entry))
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
        monkeypatch.setattr("dinov2_zoo.hub.load.PAUSES", ())

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
    assert done.files.keys() == {
        *("README.md", "SHA256SUMS", "record.json", "config.json", "preprocessor_config.json", "reference.safetensors"),
        *("model.safetensors", "transformers_model.safetensors", "projector.safetensors"),
    }
    assert [reason.split(":")[0] for reason in done.left_out] == ["features.jpg", "report.html"]
    assert done.files["model.safetensors"] > 2e7 and any(check.what == "checksums" for check in done.checks)


def test_a_run_becomes_one_repository_that_loads_from_the_hub(run, tmp_path, hub):
    store = tmp_path / "hub"
    with serve({}, store=store) as (address, asked):
        hub(address)
        done = publish(run, NAME, really=True, token="hf_x")
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
    card = (tmp_path / "hub" / NAME / "v1/README.md").read_text()
    assert "license: unknown" in card and "| training | not recorded |" in card and "# tiny" in card


def test_a_model_that_is_not_what_it_says_does_not_go_up(run, tmp_path, hub):
    (run / "student/transformers_model.safetensors").unlink()
    with serve({}, store=tmp_path / "hub") as (address, asked):
        hub(address)
        with pytest.raises(ZooError, match=r"is not what it says \(transformers_model.safetensors missing"):
            publish(run, NAME, really=True)
    assert asked == []
    shutil.rmtree(run / "student")
    with pytest.raises(ConfigError, match="holds no student"):
        publish(run, NAME)


def test_an_upload_holds_no_path_no_name_and_no_photo_of_the_user(run, tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home/ada"))
    store = tmp_path / "hub"
    with serve({}, store=store) as (address, _):
        hub(address)
        done = publish(run, NAME, really=True, token="hf_x")
    held = {path: path.read_bytes() for path in (store / NAME).rglob("*") if path.is_file()}
    assert len(held) == len(done.files) + 1  # and how the repository was made
    for path, content in held.items():
        for word in (str(tmp_path), "home/ada", "ada/", "grandmother.jpg"):
            assert word.encode() not in content, (path, word)
        assert path.suffix not in (".jpg", ".html")
    card = (store / NAME / "main/README.md").read_text()
    assert "| training images | photos of grandmother |" in card and "| teacher | teacher |" in card


def test_pictures_go_up_when_they_are_asked_for_or_of_photos_that_packages_ship(run, tmp_path):
    asked = publish(run, NAME, pictures=True)
    assert "features.jpg" in asked.files and not any("features" in reason for reason in asked.left_out)
    config = json.loads((run / "config.json").read_text())
    config["config"]["data"] = "package:photos/train"
    (run / "config.json").write_text(json.dumps(config))
    gather(run, tmp_path / "out", NAME)
    assert "](features.jpg)" in (tmp_path / "out/README.md").read_text()


def test_a_repository_is_public_only_if_it_is_said(run, tmp_path, hub):
    store = tmp_path / "hub"
    with serve({}, store=store) as (address, _):
        hub(address)
        publish(run / "student", NAME, really=True, public=True, token="hf_x")
        with pytest.raises(HubError, match=r"public.*--public"):
            publish(run / "student", NAME, really=True, token="hf_x")
        publish(run / "student", NAME, really=True, public=True, token="hf_x")
        publish(run / "student", f"{NAME}-2", really=True, token="hf_x")
        publish(run / "student", f"{NAME}-2", really=True, token="hf_x")


def test_a_licence_is_what_the_author_says(run, tmp_path):
    gather(run, tmp_path / "a", NAME)
    assert "license: unknown" in (tmp_path / "a/README.md").read_text()
    assert "pache" not in (tmp_path / "a/README.md").read_text()
    gather(run, tmp_path / "b", NAME, licence="apache-2.0")
    assert "license: apache-2.0" in (tmp_path / "b/README.md").read_text()
    (run / "student/README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(ConfigError, match="card of its own"):
        gather(run / "student", tmp_path / "c", NAME, licence="apache-2.0")


def test_a_file_that_names_a_folder_of_this_machine_does_not_go_up(run, tmp_path, hub):
    (run / "student/README.md").write_text(f"Trained in {run}, by me.")
    with pytest.raises(ConfigError, match=r"README\.md names a folder of this machine"):
        publish(run / "student", NAME)
    (run / "student/README.md").write_text("Trained by me.")
    (run / "student/cat.jpg").touch()
    done = publish(run / "student", NAME)
    assert "cat.jpg" not in done.files and done.left_out == ["cat.jpg: no part of a model"]


def test_what_was_damaged_since_it_was_saved_gets_no_new_checksums(run):
    file = run / "student/model.safetensors"
    held = bytearray(file.read_bytes())
    held[-1] ^= 1
    file.write_bytes(held)
    with pytest.raises(ZooError, match=r"model\.safetensors changed"):
        publish(run, NAME)
