import pytest
import torch
from colour_folders import colours
from cutout_folder import draw_cutouts
from evaluation_runs import QUICK

from dinov2_zoo import Dinov2Model
from dinov2_zoo.config import ModelConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("suite")
    colours(root / "photos", count=6)
    draw_cutouts(root / "cutouts")
    for number in range(2):
        model = Dinov2Model(ModelConfig(embed_dim=32, depth=4, num_heads=2, img_size=56))
        draw = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=draw)
        model.save_pretrained(root / f"model{number}")
    (root / "quick.yaml").write_text(QUICK.format(root=root))
    return root
