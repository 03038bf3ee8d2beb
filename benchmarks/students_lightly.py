"""lightly-train as a peer of `students.py`: an outside program in an environment of its own, run by its command line.

lightly-train is AGPL: none of its code is imported or copied here. Its teacher is ours, in Meta's layout; its student
is read back from the file that it exports.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.weights.key_maps import from_ours

VERSION = "0.18.*"
STUDENT = "vit_tiny_patch16_224"
# The name under which lightly-train looks for a ViT-S/14 without registers before it downloads one.
TEACHER_FILE = "dinov2_vits14_pretrain.pth"


def environment(folder: Path) -> Path:
    """Make the environment if it is not there; torch and timm are this environment's. Returns its command."""
    command = folder / "bin/lightly-train"
    if not command.exists():
        venv.create(folder, with_pip=True)
        ours = sysconfig.get_paths()["purelib"]
        theirs = next(folder.glob("lib/python*/site-packages"))
        (theirs / "main-environment.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"lightly-train=={VERSION}"], check=True)
    return command


def write_teacher(name: str, folder: Path, size: int) -> Path:
    """A ViT-S/14 without registers in Meta's layout, made to compute at `size` pixels what it computes here.

    lightly-train resamples stored positions by Meta's rule for such models (scale factor (n + 0.1) / 37), which is not
    the rule of every model of that shape. So the stored grid gets the smallest change by which Meta's rule gives this
    model's positions at `size`.
    """
    file = folder / TEACHER_FILE
    if file.exists():
        return file
    model = Dinov2Model.from_pretrained(name)
    state = {key: tensor.detach().clone().contiguous() for key, tensor in from_ours(model.state_dict(), "meta").items()}
    stored, side, wanted = state["pos_embed"], model.config.img_size // 14, size // 14
    each = torch.eye(side * side, dtype=torch.float64).view(-1, 1, side, side)
    theirs = F.interpolate(each, scale_factor=((wanted + 0.1) / side,) * 2, mode="bicubic").flatten(1).T
    missing = model.position_grid(wanted)[0].detach().double() - theirs @ stored[0, 1:].double()
    stored[0, 1:] += torch.linalg.lstsq(theirs, missing).solution.float()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return file


def arguments(
    method: str, data: Path, out: Path, teacher: Path, *, size: int, batch: int, steps: int, seed: int
) -> list[str]:
    """What follows the command for one training: its defaults but for what all share, no worker processes."""
    epochs = 1 + steps // max(1, len(list(data.iterdir())) // batch)  # more than enough: steps end it
    settings = {
        "out": out,
        "data": data,
        "model": f"timm/{STUDENT}",
        "model_args.img_size": size,
        "method": method,
        "method_args.teacher": "dinov2/vits14-noreg",
        "method_args.teacher_weights": teacher,
        "transform_args.image_size": f"[{size},{size}]",
        "epochs": epochs,
        "trainer_args.max_steps": steps,
        "batch_size": batch,
        "num_workers": 0,
        "accelerator": "cpu",
        "precision": "bf16-mixed",
        "seed": seed,
        "overwrite": "true",
    }
    return ["pretrain", *(f"{key}={value}" for key, value in settings.items())]


def timm_student(weights: dict[str, Tensor], size: int) -> nn.Module:
    """The student that both train, with some weights; a classifier among them is left out."""
    net = timm.create_model(STUDENT, num_classes=0, img_size=size, dynamic_img_size=True)
    net.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("head.")})
    return net.eval()


if __name__ == "__main__":
    print(environment(Path(sys.argv[1])))
