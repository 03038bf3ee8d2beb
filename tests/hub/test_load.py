"""The Hub through its real client, against a server on this machine: what is fetched, and how refusals read."""

from dataclasses import replace

import pytest
import torch
from fake_hub import serve
from huggingface_hub import constants
from safetensors.torch import save_file

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError, HubError
from dinov2_zoo.files import sha256_of
from dinov2_zoo.hub.load import fetch, upload
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.registry import REGISTRY
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import MODELS
from dinov2_zoo.weights.key_maps import from_ours
from dinov2_zoo.weights.read import load_weights
from dinov2_zoo.weights.write import save_weights

CONFIG = ModelConfig(64, 1, 1, img_size=56, position_offset=0.1, position_antialias=False)
NAME = "someone/tiny"


@pytest.fixture
def folder(tmp_path):
    """A model as we save it, with the things around it that a backbone does not need."""
    save_weights(tmp_path / "tiny", CONFIG, VisionTransformer(CONFIG).state_dict())
    for name in ("README.md", "heads.safetensors", "projector.safetensors", "optimizer.bin", "pytorch_model.bin"):
        (tmp_path / "tiny" / name).write_text("not needed")
    return tmp_path / "tiny"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Point the client at a server, with an empty cache, as a machine that is online."""

    def point(address):
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr("dinov2_zoo.hub.load.PAUSES", (0.0, 0.0))

    return point


def test_only_what_a_backbone_needs_is_fetched(hub, folder):
    with serve({NAME: folder}) as (address, _):
        hub(address)
        fetched = fetch(NAME)
    assert {file.name for file in fetched.iterdir()} == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_heads_are_fetched_on_request(hub, folder):
    with serve({NAME: folder}) as (address, _):
        hub(address)
        assert (fetch(NAME, heads=True) / "heads.safetensors").is_file()


def test_pickles_are_fetched_only_where_there_is_nothing_else(hub, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    state = VisionTransformer(CONFIG).state_dict()
    torch.save(from_ours(state, "transformers-v4"), folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    with serve({NAME: folder}) as (address, _):
        hub(address)
        config, loaded = load_weights(fetch(NAME))
    assert replace(config, layer_scale=CONFIG.layer_scale) == CONFIG
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_a_fetched_model_loads_offline_afterwards(hub, folder, monkeypatch):
    with serve({NAME: folder}) as (address, _):
        hub(address)
        online = Dinov2Model.from_pretrained(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = Dinov2Model.from_pretrained(NAME)
    assert all(torch.equal(a, b) for a, b in zip(online.parameters(), offline.parameters(), strict=True))


def test_a_fetched_model_loads_where_the_hub_has_gone(hub, folder):
    with serve({NAME: folder}) as (address, _):
        hub(address)
        Dinov2Model.from_pretrained(NAME)
    assert Dinov2Model.from_pretrained(NAME).config == CONFIG


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", "no model someone/tiny that you may read: check its id"),
        (401, "RepoNotFound", "no model someone/tiny"),
        (404, "RevisionNotFound", "someone/tiny at revision v9"),
        (403, "GatedRepo", "gated: accept its terms"),
        (500, "", "cannot be fetched.*HF_HUB_OFFLINE=1.*folder or file"),
    ],
)
def test_refusals_say_what_to_do(hub, status, code, said):
    with serve(refuse=(status, code)) as (address, _):
        hub(address)
        with pytest.raises(HubError, match=said):
            fetch(NAME, revision="v9" if "Revision" in code else None)


def test_no_network_names_the_offline_options(hub, monkeypatch):
    hub("http://127.0.0.1:9")
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(HubError, match=r"HF_HUB_OFFLINE=1.*folder or file of weights on this machine"):
            fetch(NAME)


@pytest.mark.parametrize(
    "source",
    ["./nowhere", "/nowhere/at/all", "~/nowhere/model", "missing.safetensors", "a/missing.pth", "no-owner", "a/b/c"],
)
def test_what_looks_like_a_path_is_not_looked_up(hub, source):
    with serve({}) as (address, asked):
        hub(address)
        with pytest.raises(CheckpointError, match="does not exist"):
            fetch(source)
    assert asked == []


def test_a_short_name_is_the_published_model(hub, tmp_path):
    config = MODELS["vits14"]
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in VisionTransformer(config).state_dict().items()}
    state = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    folder = tmp_path / "small"
    folder.mkdir()
    theirs = {name: tensor.contiguous() for name, tensor in from_ours(state, "transformers-v4").items()}
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    with serve({"facebook/dinov2-small": folder}) as (address, _):
        hub(address)
        model = Dinov2Model.from_pretrained("vits14")
    # Meta's rule for positions, not transformers'.
    assert replace(model.config, layer_scale=config.layer_scale) == config and config.position_offset == 0.1


def test_a_pinned_model_that_changed_is_refused_unless_another_revision_is_asked_for(hub, tmp_path, monkeypatch):
    folder = tmp_path / "pinned"
    Dinov2Model(ModelConfig(32, 1, 1, img_size=28)).save_pretrained(folder)
    kept = sha256_of(folder / "model.safetensors")
    with serve({"facebook/dinov2-small": folder}) as (address, _):
        hub(address)
        monkeypatch.setitem(REGISTRY, "vits14", replace(REGISTRY["vits14"], sha256=kept))
        assert fetch("vits14").is_dir()
        monkeypatch.setitem(REGISTRY, "vits14", replace(REGISTRY["vits14"], sha256="0" * 64))
        with pytest.raises(HubError, match="not the file that"):
            fetch("vits14")
        assert fetch("vits14", revision="main").is_dir()


def test_every_row_of_the_registry_names_an_architecture():
    assert set(REGISTRY) <= set(MODELS)
    assert [REGISTRY[n].parameters for n in ("vits14", "vitb14", "vitg14")] == [22_056_576, 86_580_480, 1_136_480_768]


def test_an_architecture_without_published_weights_says_so():
    with pytest.raises(HubError, match=r'nobody has published.*VisionTransformer\(model_config\("vitti14"\)\)'):
        fetch("vitti14")


def test_local_folders_and_files_are_taken_as_they_are(folder):
    assert fetch(folder) == folder
    assert fetch(str(folder / "model.safetensors")) == folder / "model.safetensors"


def test_an_upload_that_fails_says_what_to_do(hub, folder):
    with serve(refuse=(401, "")) as (address, _):
        hub(address)
        with pytest.raises(HubError, match="hf auth login"):
            upload(folder, NAME, token="hf_wrong")
    hub("http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be looked up"):
        upload(folder, NAME)
    with pytest.raises(HubError, match="cannot be uploaded"):
        upload(folder, NAME, private=False)


def test_a_download_that_is_cut_off_goes_on_where_it_was(hub, tmp_path):
    folder, sent = tmp_path / "larger", []  # than the ten megabytes that the client writes at once
    config = MODELS["vitti14"]
    save_weights(folder, config, VisionTransformer(config).state_dict())

    def trouble(method, path, body):
        if method != "GET" or not path.endswith("/model.safetensors"):
            return None
        sent.append(len(body))
        return (206 if len(sent) > 1 else 200, body[: len(body) // 2]) if len(sent) <= 2 else None

    with serve({NAME: folder}, trouble=trouble) as (address, _):
        hub(address)
        fetched = fetch(NAME)
    assert (fetched / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert len(sent) == 3 and sent[0] > sent[1] >= sent[2]


def test_a_download_that_never_ends_leaves_no_half_file(hub, folder, tmp_path, monkeypatch):
    def trouble(method, path, body):
        return (200, body[:1000]) if method == "GET" and path.endswith("/model.safetensors") else None

    with serve({NAME: folder}, trouble=trouble) as (address, _):
        hub(address)
        monkeypatch.setattr("dinov2_zoo.hub.load.PAUSES", ())
        with pytest.raises(HubError, match="cannot be fetched"):
            fetch(NAME)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == 1000]
    assert all(path.name.endswith(".incomplete") for path in left)
    with pytest.raises(HubError):
        fetch(NAME)  # nor is it taken for a model afterwards
    with serve({NAME: folder}) as (address, _):
        hub(address)
        Dinov2Model.from_pretrained(NAME)


def test_a_hub_that_stumbles_is_asked_again(hub, folder):
    failed = []

    def trouble(method, path, _):
        if method == "GET" and path.endswith("/model.safetensors") and len(failed) < 2:
            failed.append(path)
            return 503, b""
        return None

    with serve({NAME: folder}, trouble=trouble) as (address, _):
        hub(address)
        fetched = fetch(NAME)
    assert len(failed) == 2
    assert (fetched / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "meant"), [("vits41", "vits14"), ("dinov2_vitb14", "vitb14")])
def test_a_short_name_that_nobody_has_names_the_nearest(name, meant):
    with pytest.raises(CheckpointError, match=f"`{name}` does not exist: did you mean `{meant}`"):
        fetch(name)
