"""`Dinov2Model`: loads strictly, keeps its own rule of positions, and turns photos into features."""

import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dinov2_zoo
from dinov2_zoo.config import ModelConfig
from dinov2_zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, eval_image
from dinov2_zoo.errors import CheckpointError, ConfigError, DataError
from dinov2_zoo.hub import embed
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.progress import progress
from dinov2_zoo.weights.key_maps import from_ours

PLAIN = ModelConfig(64, 2, 1, img_size=112, position_offset=0.1, position_antialias=False)
REG = replace(PLAIN, num_registers=4, position_offset=0.0, position_antialias=True)


@pytest.fixture(params=[PLAIN, REG], ids=["plain", "reg4"])
def model(request):
    torch.manual_seed(0)
    model = Dinov2Model(request.param).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "bias", "pos_embed", "token")):
                parameter.normal_(0, 0.5)
    return model


@pytest.fixture
def photos(tmp_path):
    """Two coloured noises: a file, and a picture in memory."""
    rng = np.random.default_rng(0)
    made = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((90, 140), (200, 120))]
    made[0].save(tmp_path / "photo.png")
    return [tmp_path / "photo.png", made[1]]


def assert_same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_saved_and_loaded_it_is_the_same_model_ready_for_use(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = dinov2_zoo.Dinov2Model.from_pretrained(tmp_path / "model")
    assert type(loaded) is Dinov2Model
    assert loaded.config == model.config
    assert_same_weights(loaded, model)
    assert not loaded.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    x = torch.randn(2, 3, 84, 126)
    assert torch.equal(loaded(x), model(x))
    loaded(x).sum().backward()
    assert all(p.grad is not None for n, p in loaded.named_parameters() if n != "mask_token")


def test_loading_draws_no_random_numbers(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    before = torch.get_rng_state()
    Dinov2Model.from_pretrained(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)


def test_dtype_and_device_are_as_asked_or_as_stored(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    half = Dinov2Model.from_pretrained(tmp_path / "model", dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path / "half")
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert Dinov2Model.from_pretrained(tmp_path / "half").cls_token.dtype == torch.bfloat16


@pytest.mark.parametrize("size", [56, 224])
def test_img_size_stores_positions_resampled_by_the_models_own_rule(model, tmp_path, size):
    model.save_pretrained(tmp_path / "model")
    resized = Dinov2Model.from_pretrained(tmp_path / "model", img_size=size)
    assert resized.config == replace(model.config, img_size=size)
    x = torch.randn(1, 3, size, size)
    torch.testing.assert_close(resized(x), model(x), rtol=0, atol=1e-5)
    resized.save_pretrained(tmp_path / "resized")
    assert_same_weights(Dinov2Model.from_pretrained(tmp_path / "resized"), resized)


@pytest.mark.parametrize(("size", "hint"), [(220, "210 or 224"), (0, "use 14"), (-14, "use 14")])
def test_an_impossible_size_names_possible_ones(model, size, hint):
    with pytest.raises(ConfigError, match=hint):
        Dinov2Model.from_state(model.config, model.state_dict(), img_size=size)
    with pytest.raises(ConfigError, match=hint):
        model.preprocess(Image.new("RGB", (9, 9)), size=size)


def test_metas_file_loads_and_a_damaged_one_does_not(model, tmp_path):
    state = from_ours(model.state_dict(), "meta")
    torch.save(state, tmp_path / "weights.pth")
    assert_same_weights(Dinov2Model.from_pretrained(tmp_path / "weights.pth"), model)
    torch.save({n: t for n, t in state.items() if n != "norm.bias"}, tmp_path / "damaged.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: norm\.bias"):
        Dinov2Model.from_pretrained(tmp_path / "damaged.pth")


def test_preprocessing_is_evaluations(model, photos):
    batch = model.preprocess(photos, size=98)
    assert batch.shape == (2, 3, 98, 98)
    assert torch.equal(batch[1], eval_image(photos[1], 98))
    assert torch.equal(model.preprocess(str(photos[0]), size=98)[0], batch[0])
    assert model.preprocess(photos[1]).shape == (1, 3, 112, 112)  # the size that its positions are stored for
    grey = model.preprocess(Image.new("RGB", (50, 50), (128, 128, 128)), size=14)[0, :, 7, 7]
    expected = [(128 / 255 - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    torch.testing.assert_close(grey, torch.tensor(expected), rtol=0, atol=1e-5)


def test_photos_of_any_mode_are_taken(model):
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        assert model.preprocess(Image.new(mode, (40, 30)), size=28).shape == (1, 3, 28, 28)


def test_prepared_photos_fit_the_model_whatever_its_precision(model, photos):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model.to(dtype)
        assert (model.dtype, model.device) == (dtype, torch.device("cpu"))
        pixels = model.preprocess(photos, size=84)
        assert (pixels.dtype, pixels.device) == (dtype, model.device)
        features = model.embed(photos, size=84)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, model(pixels).detach().float(), rtol=0, atol=0.05)


def test_features_are_the_class_tokens_in_order_whatever_the_batch_and_the_threads(model, photos):
    many = photos * 3
    features = model.embed(many, size=84, batch_size=4, workers=1)
    assert (features.shape, features.dtype) == ((6, 64), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(features, model(model.preprocess(many, size=84)), rtol=0, atol=1e-5)
    torch.testing.assert_close(features, model.embed(iter(many), size=84, workers=8), rtol=0, atol=1e-5)
    assert torch.equal(model.embed(photos), model.embed(photos, size=112))


def test_broken_photos_are_left_out_named_and_the_rows_tell_which(model, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    given = [photos[0], tmp_path / "broken.jpg", photos[1], tmp_path / "missing.jpg"]
    with pytest.warns(
        UserWarning, match=r"(?s)2 of 4 photos could not be read:.*broken\.jpg: .*missing\.jpg: "
    ) as told:
        features = model.embed(given, size=84)
    assert told[0].filename == __file__
    assert torch.equal(features, model.embed(photos, size=84))
    found = model.embed(given, size=84, return_names=True)
    assert torch.equal(found.features, features)
    assert (found.names, found.indices) == ([str(photos[0]), "image 2"], [0, 2])
    assert [(photo.sample_id, photo.name) for photo in found.skipped] == [
        (1, str(tmp_path / "broken.jpg")),
        (3, str(tmp_path / "missing.jpg")),
    ]


def test_a_kind_that_takes_a_package_is_warned_of_and_a_text_is_not(model, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    folder = photos[0].parent
    (folder / "notes.txt").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(model.embed(folder, size=28)) == 1
    (folder / "x.heic").touch()
    with pytest.warns(UserWarning, match=r"1 HEIC left out \(needs `.*install pillow-heif`\)"):
        model.embed(folder, size=28)
    assert model.embed(folder, size=28, return_names=True).left_out == {"HEIC": 1, "other": 1}


def test_where_nothing_can_be_read_the_reason_is_an_error(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"^.*broken\.jpg: The file is not an image"):
        model.embed(tmp_path / "broken.jpg")
    with pytest.raises(DataError, match=r"None of 3 photos can be read; the first is .*broken\.jpg: "):
        model.embed([tmp_path / "broken.jpg"] * 3)
    with pytest.raises(DataError, match=r"broken\.jpg: The file is not an image"):
        model.preprocess([Image.new("RGB", (9, 9)), tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match=r"no file or folder .*missing\.jpg: name a photo"):
        model.embed(tmp_path / "missing.jpg")
    for nothing in ([], iter([])):
        for call in (model.embed, model.preprocess):
            with pytest.raises(DataError, match="There are no images: give at least one"):
                call(nothing)


def test_settings_that_read_nothing_are_refused(model, photos):
    for option in ("batch_size", "workers"):
        with pytest.raises(ConfigError, match=f"{option} 0 reads no photo: use 1 or more"):
            model.embed(photos, **{option: 0})
    with pytest.raises(ConfigError, match="size 100 is no multiple of the patch"):
        model.embed(photos, size=100)


def test_embedding_leaves_the_model_in_its_mode(model, photos):
    before = model.embed(photos, size=28)
    model.train()
    assert torch.equal(model.embed(photos, size=28), before) and model.training


def test_progress_is_said_on_a_terminal_or_when_asked_for(model, photos, capfd, monkeypatch):
    monkeypatch.setattr(embed, "shown_progress", partial(progress, after=0))
    slow = ((time.sleep(0.1), photo)[1] for _ in range(9) for photo in photos)
    model.embed(slow, size=28, progress=True)
    assert "Embedding" in capfd.readouterr().err
    monkeypatch.setattr(embed, "shown_progress", lambda *_, **__: pytest.fail("shown"))
    for options in ({}, {"progress": False}):
        model.embed(photos, size=28, **options)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    model.embed(photos, size=28, progress=False)
    with pytest.raises(pytest.fail.Exception, match="shown"):
        model.embed(photos, size=28)


def test_a_probe_can_be_trained_on_features(model, photos):
    probe = torch.nn.Linear(64, 3)
    probe(model.embed(photos, size=84)).sum().backward()
    assert probe.weight.grad.abs().sum() > 0


def test_the_package_names_its_face_and_refuses_others():
    assert {"Dinov2Model", "list_models", "model_config", "__version__"} <= set(dir(dinov2_zoo))
    assert dinov2_zoo.__version__[0].isdigit()
    assert "vits14_reg4" in dinov2_zoo.list_models()
    with pytest.raises(AttributeError, match="Dinov3Model"):
        _ = dinov2_zoo.Dinov3Model


def test_loading_a_model_speaks_to_no_training_library(tmp_path):
    Dinov2Model(PLAIN).save_pretrained(tmp_path / "model")
    code = (
        "import sys, dinov2_zoo; dinov2_zoo.Dinov2Model.from_pretrained(sys.argv[1]); "
        "found = {'accelerate', 'transformers', 'datasets', 'onnx'} & set(sys.modules); "
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
