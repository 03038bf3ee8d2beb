"""Every preset's step runs in simulation at its own number of processes, and fits the cards that it was made for."""

from pathlib import Path

import pytest

from dinov2_zoo.recipes.plan import config_of
from dinov2_zoo.simulation.chips import CHIPS
from dinov2_zoo.simulation.runtime import Processes
from dinov2_zoo.simulation.step import simulate

CONFIGS = Path(__file__).resolve().parents[2] / "recipes/configs"

# GPUs, and the least card: the papers' and READMEs' numbers of GPUs where they name them, else chosen here.
OWN = {
    "demo": (1, "l4"),
    "chain_distill": (1, "l4"),
    "own_images": (1, "a100-40"),
    "own_teacher": (1, "a100-80"),
    "pretrain_demo": (1, "l4"),
    "fit_heads": (1, "l4"),
    "vits14_single_gpu": (1, "a100-80"),
    "paper_vits14": (16, "a100-80"),
    "vitl16_short": (32, "a100-80"),
    "vitl14": (96, "a100-40"),
    "vitg14": (64, "a100-40"),
}
MORE = {"chain_distill": ["--teacher", "vitti14_reg4"]}  # it is made by the link before


def test_no_preset_is_forgotten_here():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == OWN.keys() | {"evaluate_demo"}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_a_preset_runs_in_simulation_and_fits(name):
    gpus, card = OWN[name]
    step = simulate(config_of(["--config", str(CONFIGS / f"{name}.yaml"), *MORE.get(name, [])]), Processes(gpus))
    assert step.peak < CHIPS[card].room, f"{step.peak / 2**30:.1f} GiB at {step.where}"
    assert step.flops > 0 and {"update", "backward", "losses"} <= {work.phase for work in step.works}
    kinds = {collective.name for collective in step.collectives}
    assert kinds == ({"all-gather", "reduce-scatter", "all-reduce"} if gpus > 1 else set())
