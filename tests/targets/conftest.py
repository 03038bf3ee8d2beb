import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from target_stores import small_place, store

from dinov2_zoo.models.zoo import MODELS


@pytest.fixture(autouse=True)
def small_student(monkeypatch):
    """`vitti14`, as small as the teacher: these tests are not about how much a student learns."""
    shape = replace(MODELS["vitti14"], embed_dim=64, depth=2, num_heads=1)
    monkeypatch.setitem(MODELS, "vitti14", shape)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Images, a teacher, and a store of two epochs; not to be changed."""
    place = small_place(tmp_path_factory.mktemp("targets"))
    place.store = store(place)
    return place


@pytest.fixture
def place(made, tmp_path):
    """The same with a store of its own, to be harmed."""
    shutil.copytree(made.store, tmp_path / "store")
    return SimpleNamespace(**vars(made) | {"root": tmp_path, "store": tmp_path / "store"})
