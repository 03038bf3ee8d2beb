"""Stores of a small teacher's targets, made by the recipe."""

from types import SimpleNamespace

import torch
from lively_weights import enliven
from PIL import Image
from skimage import data as photos

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.recipes import store_targets

CROPS = ("--crops.global_size=28", "--crops.local_size=14", "--crops.local_count=2", "--crops.mix=0")
SETTINGS = (*CROPS, "--epochs=2", "--directions=12", "--evaluation.heldout_count=3", "--fit_images=18")
MACHINE = ("--loader.batch_size=4", "--loader.workers=0", "--runtime.threads=1", "--runtime.precision=fp32")


def options(place, *more, to="store"):
    """The recipe's command line."""
    named = (f"--data={place.images}", f"--teacher={place.teacher}", f"--to={place.root / to}")
    return [*SETTINGS, *MACHINE, *named, *more]


def store(place, *more, to="store"):
    """Make a store, or go on with it, in this process; its folder."""
    store_targets.main(options(place, *more, to=to))
    return place.root / to


def save_teacher(folder, seed=0):
    """A teacher of the student's patch and head width, whose every parameter matters."""
    torch.manual_seed(seed)
    shape = ModelConfig(embed_dim=64, depth=2, num_heads=1, img_size=28, layer_scale=1.0)
    enliven(Dinov2Model(shape), matrices=lambda matrix: matrix[0].numel() ** -0.5).save_pretrained(folder)


def small_place(root):
    """Twelve images and a teacher."""
    (root / "images").mkdir()
    photo = Image.fromarray(photos.astronaut())
    for i in range(12):
        photo.crop((35 * i, 20 * i, 35 * i + 70, 20 * i + 60)).save(root / f"images/{i:02}.png")
    save_teacher(root / "teacher")
    return SimpleNamespace(root=root, images=root / "images", teacher=root / "teacher")
