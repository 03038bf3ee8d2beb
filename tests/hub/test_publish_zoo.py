"""Meta's models onto a Hub on this machine, in the layouts they come in: one at a time, again only what is left."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_hub import serve
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dinov2_zoo.errors import CheckpointError, ConfigError, HubError
from dinov2_zoo.hub import publish_zoo as module
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.publish_zoo import look_up_states, plan, publish_zoo
from dinov2_zoo.hub.registry import REGISTRY
from dinov2_zoo.hub.verify import failures, verify
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import MODELS
from dinov2_zoo.weights.key_maps import from_ours

# One block and a grid of 8 x 8: the widths, and with them every path through the code, are the real ones.
SHALLOW = {name: replace(config, depth=1, img_size=112) for name, config in MODELS.items()}


def theirs(folder, config, layout, seed=0):
    """Random weights as a repository of Meta's holds them."""
    folder.mkdir()
    torch.manual_seed(seed)
    state = VisionTransformer(config).state_dict()
    if layout == "meta":
        save_file({n: t.contiguous() for n, t in from_ours(state, "meta").items()}, folder / "model.safetensors")
    elif layout == "pickle":
        torch.save(from_ours(state, "transformers-v4"), folder / "pytorch_model.bin")
    else:
        named = {n: t.clone() for n, t in from_ours(state, "transformers-v4").items()}
        save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    (folder / "README.md").write_text("theirs")
    return state


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("dinov2_zoo.hub.load.PAUSES", ())
    monkeypatch.setattr(module, "MODELS", SHALLOW)

    def point(address):
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)

    return point


def served(tmp_path, names, layout="transformers", config=SHALLOW):
    folders = {REGISTRY[name].repository: tmp_path / f"meta-{name}" for name in names}
    states = {name: theirs(folders[REGISTRY[name].repository], config[name], layout) for name in names}
    return folders, states


def check_published(store, name, state, work, *, libraries=True):
    folder = store / "us" / name / "main"
    loaded = Dinov2Model.from_pretrained(folder)
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    assert loaded.config.position_offset == MODELS[name].position_offset
    if libraries:
        checks = verify(str(folder), sizes=[(98, 98)])
        assert not failures(checks)
        assert {c.what for c in checks if c.passed} >= {"checksums", "reference photo", "dinov2-zoo loads"}
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    card, record = (folder / "README.md").read_text(), json.loads((folder / "record.json").read_text())
    assert record["source"]["sha256"] in card and f"hf-hub:us/{name}" in card and "license: apache-2.0" in card
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert str(work) not in card + json.dumps(record)


@pytest.mark.parametrize("layout", ["transformers", "meta", "pickle"])
@pytest.mark.parametrize("name", ["vits14", "vits14_reg4", "vitg14_reg4"])
def test_a_model_in_any_layout_of_metas_becomes_a_folder_for_three_libraries(tmp_path, hub, name, layout):
    folders, states = served(tmp_path, [name], layout)
    work, store = tmp_path / "work", tmp_path / "hub"
    with serve(folders, store=store) as (address, _):
        hub(address)
        assert publish_zoo(plan("us", [name]), work, token="hf_x") == [f"{address}/us/{name}"]
    check_published(store, name, states[name], work)
    made = json.loads((store / "us" / name / "created.json").read_text())
    assert made.get("private", made.get("visibility")) in (True, "private")
    assert not work.exists()
    file = "pytorch_model.bin" if layout == "pickle" else "model.safetensors"
    fetched = json.loads((store / "us" / name / "main/record.json").read_text())["source"]
    assert fetched["sha256"] == hashlib.sha256((tmp_path / f"meta-{name}" / file).read_bytes()).hexdigest()


def test_all_eight_go_up_small_to_large_and_one_at_a_time(tmp_path, hub):
    folders, states = served(tmp_path, REGISTRY)
    work, store, said, most = tmp_path / "work", tmp_path / "hub", [], []

    def say(line):
        said.append(line)
        most.append(len(list(work.iterdir())) if work.exists() else 0)

    with serve(folders, store=store) as (address, _):
        hub(address)
        assert len(publish_zoo(plan("us"), work, token="hf_x", say=say)) == 8
        assert [i.state for i in look_up_states(plan("us"))] == ["done"] * 8
    order = [line.split(":")[0] for line in said if "fetching" in line]
    assert order == sorted(REGISTRY, key=lambda name: REGISTRY[name].parameters) and max(most) == 1
    for name in REGISTRY:
        check_published(store, name, states[name], work, libraries=False)


KILLED = """
import os, sys
from huggingface_hub import constants
address, work, cache = sys.argv[1:]
constants.HF_HUB_DISABLE_XET, constants.HF_HUB_CACHE = True, cache
from dataclasses import replace
from dinov2_zoo.hub import publish_zoo as module
module.MODELS = {n: replace(c, depth=1, img_size=112) for n, c in module.MODELS.items()}
def say(line):
    print(line, flush=True)
    if "vits14_reg4: uploading" in line:
        os._exit(9)  # as killed
module.publish_zoo(module.plan("us", ["vits14", "vits14_reg4", "vitb14"]), module.Path(work), token="hf_x", say=say)
"""


def test_what_was_killed_between_two_models_goes_on_with_what_is_left(tmp_path, hub):
    names = ["vits14", "vits14_reg4", "vitb14"]
    folders, states = served(tmp_path, names)
    work, store, said = tmp_path / "work", tmp_path / "hub", []
    with serve(folders, store=store) as (address, asked):
        hub(address)
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", KILLED, address, str(work), str(tmp_path / "cache")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 9, done.stderr
        assert (store / "us/vits14/main/record.json").is_file() and not (store / "us/vits14_reg4").exists()
        assert [path.name for path in work.iterdir()] == ["vits14_reg4"]
        assert [i.state for i in look_up_states(plan("us", names))] == ["done", "to do", "to do"]
        asked.clear()
        addresses = publish_zoo(plan("us", names), work, token="hf_x", say=said.append)
    assert [a.rsplit("/", 1)[1] for a in addresses] == names[1:]
    assert said[0] == "vits14: on the Hub already, at the same checksum"
    fetched = [path for path in asked if "/resolve/" in path and path.endswith("model.safetensors")]
    # Nothing of the first; of the second, which lay there, only a look; the third whole.
    assert not any("facebook/dinov2-small/" in path for path in fetched) and len(fetched) <= 3
    for name in names:
        check_published(store, name, states[name], work, libraries=False)
    assert not work.exists()


def test_a_source_that_changed_is_published_again(tmp_path, hub):
    folders, _ = served(tmp_path, ["vits14"])
    with serve(folders, store=tmp_path / "hub") as (address, _):
        hub(address)
        publish_zoo(plan("us", ["vits14"]), tmp_path / "work", token="hf_x")
        assert publish_zoo(plan("us", ["vits14"]), tmp_path / "work", token="hf_x") == []
        file = tmp_path / "meta-vits14/model.safetensors"
        save_file({n: t + 1 for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
        assert len(publish_zoo(plan("us", ["vits14"]), tmp_path / "work", token="hf_x")) == 1


def test_what_is_not_the_model_it_should_be_does_not_go_up(tmp_path, hub, monkeypatch):
    folders, _ = served(tmp_path, ["vits14"], config={"vits14": SHALLOW["vits14_reg4"]})
    with serve(folders, store=tmp_path / "hub") as (address, _):
        hub(address)
        with pytest.raises(CheckpointError, match="another architecture than vits14"):
            publish_zoo(plan("us", ["vits14"]), tmp_path / "work", token="hf_x")
        monkeypatch.setitem(REGISTRY, "vits14", replace(REGISTRY["vits14"], sha256="0" * 64))
        with pytest.raises(HubError, match=r"another model\.safetensors than it names"):
            publish_zoo(plan("us", ["vits14"]), tmp_path / "work", token="hf_x")
    assert not (tmp_path / "hub").exists() and not any((tmp_path / "work").iterdir())


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(tmp_path, hub, monkeypatch):
    folders, _ = served(tmp_path, ["vits14"])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**27})())
    with serve(folders) as (address, asked):
        hub(address)
        with pytest.raises(ConfigError, match=r"vits14 needs 0\.3 GiB in .*where 0\.1 GiB are free: make room"):
            publish_zoo(plan("us", ["vits14"]), tmp_path / "work", token="hf_x")
    assert not any("/resolve/" in path for path in asked)


def test_without_being_told_to_upload_only_the_plan_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import sys; sys.argv[0] = 'dinov2-zoo'; from dinov2_zoo.cli import main; main()"
    command = [sys.executable, "-c", code, "publish-zoo", "us", "--only", "vits14,vitg14"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "facebook/dinov2-giant -> us/vitg14" in done.stdout and "13.3 GiB of disk" in done.stdout
    assert "Nothing was fetched or uploaded" in done.stdout and not any(Path().iterdir())


@pytest.mark.parametrize(("namespace", "only"), [("a/b", []), ("", []), ("us", ["vits41"])])
def test_a_wrong_name_says_what_to_use(namespace, only):
    with pytest.raises(ConfigError, match=r"name a user or an organisation|use vits14"):
        plan(namespace, only)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REGISTRY if name[3] != "g"])  # whose files are 13 GB in memory here
def test_a_model_at_its_full_size(tmp_path, hub, monkeypatch, name):
    monkeypatch.setattr(module, "MODELS", MODELS)
    folders, states = served(tmp_path, [name], config=MODELS)
    with serve(folders, store=tmp_path / "hub") as (address, _):
        hub(address)
        publish_zoo(plan("us", [name]), tmp_path / "work", token="hf_x")
    check_published(tmp_path / "hub", name, states[name], tmp_path / "work")
