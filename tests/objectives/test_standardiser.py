"""Standardised tokens: equal variances, there and back, and folded out of the projector that is saved."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dinov2_zoo.config import FeaturesConfig, ObjectiveConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.hub.student import save_student
from dinov2_zoo.initialisation.projector import fit_projector
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector, ProjectorMLP
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.hadamard import hadamard
from dinov2_zoo.objectives.standardiser import Standardiser

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 24, 64, 192, 384, 768, 1024, 1280, 1536])
def test_hadamard_matrices_are_orthogonal_and_of_equal_entries(n):
    matrix = hadamard(n)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, n**-0.5))


@pytest.mark.parametrize("n", [3, 6, 18, 37, 52])
def test_widths_without_one_are_said(n):
    with pytest.raises(ConfigError, match=rf"none of {n} is made here: use .*standardise channels"):
        hadamard(n)


def uneven(rows=400, dim=12):
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(rows, dim, generator=generator, dtype=torch.float64) @ torch.randn(
        dim, dim, generator=generator, dtype=torch.float64
    )
    return mixed * torch.logspace(-2, 2, dim, dtype=torch.float64) + torch.arange(dim)


def measured(kind, tokens):
    found = Standardiser(tokens.shape[1], kind).double()
    found.set(tokens.mean(0), torch.cov(tokens.T, correction=0))
    return found


@pytest.mark.parametrize("kind", ["channels", "phi-s"])
def test_every_channel_has_variance_1_and_restore_undoes_it(kind):
    tokens = uneven()
    found = measured(kind, tokens)
    standard = found.standardise(tokens)
    torch.testing.assert_close(standard.mean(0), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(standard.var(0, correction=0), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(found.restore(standard), tokens)


def test_phi_s_keeps_the_teachers_distances_but_for_one_scale():
    tokens = uneven()
    ratios = {
        kind: torch.pdist(measured(kind, tokens).standardise(tokens)) / torch.pdist(tokens)
        for kind in ("channels", "phi-s")
    }
    scale = tokens.var(0, correction=0).mean().sqrt()
    torch.testing.assert_close(ratios["phi-s"], (1 / scale).expand_as(ratios["phi-s"]))
    assert ratios["channels"].max() > 2 * ratios["channels"].min()


def module(standardise, projector, seed=0):
    torch.manual_seed(seed)
    config = FeaturesConfig(standardise=standardise, projector=projector)
    teacher, backbone = tiny.backbone(24), tiny.backbone(16)  # before the projector: then they are the same for all
    student = Branch(backbone, projector=FeatureProjector(16, 16, 24, projector))
    return Distillation(student, Branch(teacher), ObjectiveConfig(features=config))


@pytest.mark.parametrize("standardise", ["channels", "phi-s"])
@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_every_projector_begins_as_the_same_map_and_is_saved_at_the_teachers_scale(standardise, projector, tmp_path):
    batches = [tiny.batch(images=16, local=0, seed=s) for s in range(2)]
    plain, found = module("channels", "linear"), module(standardise, projector)
    for each in (plain, found):
        fit_projector(each, batches, device=CPU)
    with torch.no_grad():
        outputs = [each.student([batches[0].global_crops])[0] for each in (plain, found)]
        pairs = zip((plain, found), outputs, strict=True)
        expected, mine = (each.objective.in_teacher_space(output.projected) for each, output in pairs)
    torch.testing.assert_close(mine.patches, expected.patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.class_token, expected.class_token, rtol=1e-4, atol=1e-5)

    save_student(tmp_path / "student", found, found.ema.state_dict())
    saved = load_file(tmp_path / "student/projector.safetensors")
    for kind in ("class_token", "patches"):
        x = getattr(outputs[0].tokens, kind)
        if projector == "mlp":
            x = F.gelu(F.linear(x, saved[f"{kind}.fc1.weight"], saved[f"{kind}.fc1.bias"]))
        last = f"{kind}.fc2" if projector == "mlp" else kind
        y = F.linear(x, saved[f"{last}.weight"], saved[f"{last}.bias"])
        torch.testing.assert_close(y, getattr(expected, kind), rtol=1e-4, atol=1e-5)
    assert len(saved) == (8 if projector == "mlp" else 4)


def test_phi_s_is_fitted_on_the_teachers_own_tokens():
    batches = [tiny.batch(images=16, local=0, seed=s) for s in range(4)]
    found = module("phi-s", "linear")
    fit_projector(found, batches, device=CPU)
    with torch.no_grad():
        outputs = [found.teacher([b.global_crops])[0].tokens for b in batches]
    for kind in ("class_token", "patches"):
        tokens = torch.cat([getattr(output, kind).flatten(0, -2) for output in outputs])
        standard = getattr(found.objective, kind).standardise(tokens)
        torch.testing.assert_close(standard.var(0, correction=0), torch.ones(24), rtol=1e-3, atol=1e-3)


def test_an_mlp_is_exactly_linear_at_first_and_all_of_it_learns():
    layer = ProjectorMLP(5, 3).double()
    weight, bias = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    layer.become_linear(weight, bias)
    x = 4 * torch.randn(50, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, weight, bias), rtol=1e-12, atol=1e-12)
    layer(x).square().sum().backward()
    assert all((p.grad != 0).any(-1).all() for p in layer.parameters())
    with torch.no_grad():
        layer.fc1.weight += 0.1  # no longer two halves of one thing
    assert not torch.allclose(layer(x) - layer(-x), 2 * (layer(x) - layer(0 * x)))
