import torch
from torch import nn

from dinov2_zoo.training import gradients


def branch():
    torch.manual_seed(0)
    module = nn.ModuleDict({"backbone": nn.Linear(4, 4), "head": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    for name, scale in (("backbone", 10.0), ("head", 0.01)):
        for p in module[name].parameters():
            p.grad = torch.randn_like(p) * scale
    return module


def test_each_part_is_clipped_by_its_own_norm():
    module = branch()
    before = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    parts = gradients.gradients_by_part(module)
    assert list(parts) == ["backbone", "head"]
    norms = gradients.squared_norms(parts).sqrt()
    for part, norm in zip(parts, norms, strict=True):
        whole = torch.cat([g.flatten() for n, g in before.items() if n.startswith(part)])
        torch.testing.assert_close(norm.float(), whole.norm())
    gradients.clip(parts, norms, limit=3.0)
    after = gradients.squared_norms(gradients.gradients_by_part(module)).sqrt()
    torch.testing.assert_close(after[0], torch.tensor(3.0, dtype=torch.float64), rtol=1e-5, atol=0)
    assert torch.equal(module["head"].weight.grad, before["head.weight"])  # small gradients are left bit for bit
    torch.testing.assert_close(module["backbone"].weight.grad, before["backbone.weight"] * (3.0 / norms[0].float()))


def test_one_bad_gradient_shows_in_its_norm():
    module = branch()
    module["head"].bias.grad[2] = float("nan")
    norms = gradients.squared_norms(gradients.gradients_by_part(module))
    assert norms.isfinite().tolist() == [True, False]
