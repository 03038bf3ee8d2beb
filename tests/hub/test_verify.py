"""A model folder is checked by loading it in three libraries; whatever was tampered with is found."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import ZooError
from dinov2_zoo.hub.convert import convert
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.verify import failures, require, verify
from dinov2_zoo.models.zoo import MODELS
from dinov2_zoo.weights.checksums import write_checksums
from dinov2_zoo.weights.key_maps import from_ours

SMALL = ModelConfig(64, 2, 1, img_size=56, num_registers=4)


def saved(folder, config=SMALL):
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def trained(folder, lively, config=SMALL, dtype=torch.float32):
    """A model whose every weight tells."""
    Dinov2Model.from_state(config, lively(config).to(dtype).state_dict()).save_pretrained(folder)
    return folder


def forged(folder):
    """New checksums, so that the tokens alone can tell."""
    write_checksums(folder)
    return {check.what: check for check in verify(str(folder))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_passes_where_it_was_saved_moved_and_on_any_number_of_threads(tmp_path, lively, dtype):
    folder = trained(tmp_path / "m", lively, dtype=dtype)
    moved = tmp_path / "elsewhere/another name"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        checks = found(verify(str(moved)))
        assert not failures(list(checks.values()))
        assert checks["checksums"].found == "5 files as listed" and checks["reference photo"].passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_per_cent_on_a_blocks_attention_is_found_by_its_tokens(tmp_path, lively, dtype):
    folder = trained(tmp_path / "m", lively, dtype=dtype)
    assert found(verify(str(folder)))["reference photo"].passed
    for name, keys in (
        ("model.safetensors", ["blocks.1.attn.qkv.weight"]),
        ("transformers_model.safetensors", [f"encoder.layer.1.attention.attention.{k}.weight" for k in KEYS]),
    ):
        with safe_open(folder / name, "pt") as file:
            about = file.metadata()
        state = load_file(folder / name)
        for key in keys:
            state[key] = state[key] * 1.01
        save_file(state, folder / name, metadata=about)
    assert found(verify(str(folder)))["checksums"].found == "changed model.safetensors, transformers_model.safetensors"
    checks = forged(folder)
    wrong = [check.what for check in failures(list(checks.values()))]
    assert wrong == ["reference photo"] and "not those it was saved with" in checks["reference photo"].found


KEYS = ("query", "key", "value")


@pytest.mark.parametrize("change", [{"num_heads": 2}, {"position_offset": 0.1}, {"position_antialias": False}], ids=str)
def test_another_config_is_found_by_its_tokens(tmp_path, lively, change):
    folder = trained(tmp_path / "m", lively)
    our_config(folder, **change)
    assert found(verify(str(folder)))["checksums"].found == "changed config.json"
    assert forged(folder)["reference photo"].passed is False


def test_a_folder_of_others_has_no_reference_and_no_checksums(tmp_path, lively):
    (tmp_path / "m").mkdir()
    save_file(from_ours(lively(SMALL).state_dict(), "meta"), tmp_path / "m/model.safetensors")
    checks = found(verify(str(tmp_path / "m")))
    assert checks["checksums"].passed is None and checks["reference photo"].passed is None
    assert not failures(list(checks.values()))


def test_a_card_may_be_edited_and_what_is_not_listed_is_named(tmp_path):
    folder = saved(tmp_path / "m")
    (folder / "README.md").write_text("# Mine")
    (folder / "probe.safetensors").write_bytes(b"")
    assert found(verify(str(folder)))["checksums"].found == "5 files as listed; not listed: probe.safetensors"


def found(checks):
    return {check.what: check for check in checks}


@pytest.mark.parametrize("name", ["vitti14_reg4", "vits14_reg4", "vits14"])
def test_a_saved_model_passes_in_every_library(tmp_path, name):
    checks = found(verify(str(saved(tmp_path / "m", MODELS[name])), sizes=[(98, 98), (126, 84), (518, 518)]))
    assert not failures(list(checks.values()))
    for library in ("timm", "transformers"):
        assert checks[f"{library}, 518 x 518"].passed
        # The published rule for models without registers is followed by neither library away from the stored size.
        assert checks[f"{library}, 126 x 84"].passed is (True if "reg4" in name else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vitb14", "vitb14_reg4", "vitl14", "vitl14_reg4", "vitg14_reg4"])
def test_every_size_passes_in_every_layout(tmp_path, name):
    folder = saved(tmp_path / "m", MODELS[name])
    assert not failures(verify(str(folder), sizes=[(98, 98), (126, 84)]))
    for to in ("meta", "timm", "transformers"):
        convert(folder, tmp_path / to, to)
        checks = verify(str(tmp_path / to), sizes=[(98, 98), (126, 84)])
        assert not failures(checks) and (to == "meta" or found(checks)[f"{to}, 126 x 84"].passed in (True, None))
        shutil.rmtree(tmp_path / to)


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_weights(folder):
    file = folder / "transformers_model.safetensors"
    state = load_file(file)
    state["layernorm.bias"] = state["layernorm.bias"] + 1e-2
    save_file(state, file, metadata={"format": "pt"})


def one_byte(folder):
    file = folder / "model.safetensors"
    held = bytearray(file.read_bytes())
    held[-5] ^= 1
    file.write_bytes(held)


def our_config(folder, **changes):
    file = folder / "config.json"
    entries = json.loads(file.read_text())
    entries["dinov2_zoo"] |= changes
    file.write_text(json.dumps(entries))


TAMPER = {
    "other weights for transformers": (other_weights, "transformers, 56 x 56"),
    "no weights for transformers": (lambda f: (f / "transformers_model.safetensors").unlink(), "transformers"),
    "another depth for transformers": (lambda f: edit_config(f, num_hidden_layers=3), "config.json for transformers"),
    "another architecture for timm": (
        lambda f: edit_config(f, architecture="vit_base_patch14_reg4_dinov2"),
        "config.json for timm",
    ),
    "one byte": (one_byte, "checksums"),
    "a missing file": (lambda f: (f / "preprocessor_config.json").unlink(), "checksums"),
    "a missing reference": (lambda f: (f / "reference.safetensors").unlink(), "checksums"),
    "missing weights": (lambda f: (f / "model.safetensors").unlink(), "dinov2-zoo loads"),
    "a config that is cut off": (lambda f: (f / "config.json").write_text('{"dinov2'), "dinov2-zoo loads"),
    "a list that is none": (lambda f: (f / "SHA256SUMS").write_text("<html>\n"), "checksums"),
}


@pytest.mark.parametrize("kind", TAMPER)
def test_what_was_tampered_with_is_found(tmp_path, kind):
    folder = saved(tmp_path / "m")
    harm, where = TAMPER[kind]
    harm(folder)
    checks = verify(str(folder))
    assert found(checks)[where].passed is False
    with pytest.raises(ZooError, match="is not what it says"):
        require(checks, "m")


def test_the_command_prints_a_table_and_fails_loudly(tmp_path):
    folder = saved(tmp_path / "m")
    code = "import sys; sys.argv[0] = 'dinov2-zoo'; from dinov2_zoo.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "verify", folder], capture_output=True, text=True)
    assert done.returncode == 0 and "transformers, 56 x 56" in done.stdout, done.stderr
    other_weights(folder)
    done = subprocess.run([sys.executable, "-c", code, "verify", folder], capture_output=True, text=True)
    assert done.returncode == 2 and "WRONG" in done.stdout and "is not what it says" in done.stderr
