"""The prototypes objective written plainly, in float64, with whole matrices: what the fast code must equal.

It follows the paper and the official recipe step by step and shares no line with the package.
"""

import torch


def sinkhorn(logits, temperature, iterations):
    """Probabilities [n, K]: Q = exp(logits / T), alternately scaled over prototypes and over samples."""
    q = torch.exp(logits / temperature).T
    k, n = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / k
        q = q / q.sum(dim=0, keepdim=True) / n
    return (q * n).T


def centred(logits, temperature, centre):
    return torch.softmax((logits - centre) / temperature, dim=1)


def cross_entropy(target, logits, temperature):
    """Per row."""
    return -(target * torch.log_softmax(logits / temperature, dim=-1)).sum(-1)


def koleo(tokens):
    x = tokens / (tokens.norm(dim=1, keepdim=True).clamp(min=1e-8))
    losses = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        best = max(others, key=lambda j: float((x[i] @ x[j]).detach()))
        losses.append(-torch.log((x[i] - x[best] + 1e-8).norm() + 1e-8))
    return torch.stack(losses).mean()


def head(mlp, g, v, tokens):
    """Logits of a projection head from its raw parameters."""
    x = tokens
    for number, (weight, bias) in enumerate(mlp):
        x = x @ weight.T + bias
        if number < 2:
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    x = x / x.norm(dim=-1, keepdim=True)
    return x @ (g * v / v.norm(dim=1, keepdim=True)).T


def masked_ibot(targets, patches, masks, temperature):
    """Per crop the mean over its masked patches, 0 where it has none; then the mean over all crops."""
    total, used, crops = 0, 0, 0
    for view, mask in zip(patches, masks, strict=True):
        for image in range(len(view)):
            crops += 1
            count = int(mask[image].sum())
            if count:
                goal = targets[used : used + count]
                total = total + cross_entropy(goal, view[image][mask[image]], temperature).mean()
                used += count
    return total / crops


def objective(
    student,
    teacher,
    *,
    teacher_temperature,
    student_temperature,
    iterations=3,
    centres=None,
    koleo_weight=0.1,
    masks=None,
):
    """The whole loss; with masks [2][B, N], iBOT is about the masked patches only.

    student, teacher: dicts with "class" logits per view [V][B, K], "patches" logits per global view [2][B, N, K], and,
    of the student, "tokens" [2][B, D]; views are global 1, global 2, locals.
    """
    class_logits = torch.cat(teacher["class"][:2])
    patch_logits = torch.cat([p.flatten(0, 1) for p in teacher["patches"]])
    if masks is not None:
        patch_logits = patch_logits[torch.cat([m.flatten() for m in masks])]
    if centres is None:
        class_targets = sinkhorn(class_logits, teacher_temperature, iterations)
        patch_targets = sinkhorn(patch_logits, teacher_temperature, iterations)
    else:
        class_targets = centred(class_logits, teacher_temperature, centres[0])
        patch_targets = centred(patch_logits, teacher_temperature, centres[1])
    class_targets = class_targets.chunk(2)

    pairs = []
    for t in range(2):
        for s, logits in enumerate(student["class"]):
            if s != t:
                pairs.append(cross_entropy(class_targets[t], logits, student_temperature).mean())
    dino = torch.stack(pairs).mean()
    patches = torch.cat([p.flatten(0, 1) for p in student["patches"]])
    if masks is None:
        ibot = cross_entropy(patch_targets, patches, student_temperature).mean()
    else:
        ibot = masked_ibot(patch_targets, student["patches"], masks, student_temperature)
    spread = sum(koleo(tokens) for tokens in student["tokens"])
    return {"loss": dino + ibot + koleo_weight * spread, "dino": dino, "ibot": ibot, "koleo": spread}
