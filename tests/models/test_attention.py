"""Attention stays inside each sequence, whichever way computes it; a way that fails on this device is never taken."""

import inspect
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from timm.layers import Attention as TimmAttention
from torch.nn.attention import varlen as torch_varlen
from torch.utils.checkpoint import checkpoint

from dinov2_zoo.data.drop_path import DropPath, Share, draw_kept
from dinov2_zoo.models import attention, vision_transformer
from dinov2_zoo.models.attention import Attention, choose, fault_of, sdpa, varlen, xformers
from dinov2_zoo.models.packing import Packing
from dinov2_zoo.models.stochastic_depth import subsets_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTHS = [5, 5, 1, 1, 1, 4]
PACKING = Packing(((2, 5), (3, 1), (1, 4)))


def queries_keys_values(width=8):
    return torch.randn(3, sum(LENGTHS), 2, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def written_out(q, k, v, lengths):
    """Softmax attention of each sequence by itself."""
    outputs = []
    for query, key, value in zip(*(t.split(lengths) for t in (q, k, v)), strict=True):
        similarity = torch.einsum("qhd,khd->hqk", query, key) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("hqk,khd->qhd", similarity.softmax(-1), value))
    return torch.cat(outputs)


@pytest.fixture
def plain_kernels(monkeypatch):
    """CUDA's two kernels replaced by the plain computation, behind their own signatures."""

    def varlen_attn(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k):
        assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k)
        lengths = cu_seq_q.diff().tolist()
        assert cu_seq_q[0] == 0 and max_q == max_k == max(lengths)
        return written_out(q, k, v, lengths)

    def memory_efficient_attention(query, key, value, attn_bias):
        return written_out(query[0], key[0], value[0], attn_bias)[None]

    mask = SimpleNamespace(from_seqlens=lambda q_seqlen, *, device: q_seqlen)
    ops = SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    monkeypatch.setattr(torch_varlen, "varlen_attn", varlen_attn)
    for name, module in {"": None, ".ops": ops, ".ops.fmha": None}.items():
        monkeypatch.setitem(sys.modules, f"xformers{name}", module or SimpleNamespace(ops=ops))
    monkeypatch.setitem(sys.modules, "xformers.ops.fmha.attn_bias", SimpleNamespace(BlockDiagonalMask=mask))


def group_by_group(packing, device):
    """The reference, as a kernel."""
    return lambda q, k, v: sdpa(q, k, v, packing)


@pytest.mark.parametrize("kernel", [group_by_group, varlen, xformers])
def test_every_way_is_softmax_attention_within_each_sequence(kernel, plain_kernels):
    q, k, v = queries_keys_values()
    torch.testing.assert_close(kernel(PACKING, CPU)(q, k, v), written_out(q, k, v, LENGTHS), rtol=0, atol=1e-12)


def test_the_module_equals_timms_on_every_sequence():
    torch.manual_seed(0)
    theirs = TimmAttention(24, num_heads=3, qkv_bias=True).double()
    ours = Attention(24, 3).double()
    ours.load_state_dict(theirs.state_dict())
    groups = [torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(3, 2, 24, dtype=torch.float64)]
    packing = Packing.of(groups)
    for mine, group in zip(packing.unpack(ours(packing.pack(groups), packing)), groups, strict=True):
        torch.testing.assert_close(mine, theirs(group), rtol=0, atol=1e-12)


def raises(packing, device):
    raise NotImplementedError("no kernel\nfor this device")


def looks_across(packing, device):
    return lambda q, k, v: sdpa(q, k, v, Packing(((1, len(q)),)))


def loses_the_gradient_of_keys(packing, device):
    return lambda q, k, v: sdpa(q, k.detach(), v, packing)


BROKEN = {
    raises: "NotImplementedError: no kernel for this device",
    looks_across: "its outputs and gradients are wrong",
    loses_the_gradient_of_keys: "its gradients are wrong",
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_way_works_only_if_outputs_and_gradients_are_right(broken, dtype):
    assert not fault_of(group_by_group, CPU, dtype, 16)
    assert fault_of(broken, CPU, dtype, 16) == BROKEN[broken]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_first_question_may_come_from_an_evaluation_or_under_autocast(mode):
    # The answer is kept for the whole process: a wrong one would cost training its fast kernel.
    with mode():
        assert not fault_of(group_by_group, CPU, torch.float32, 8)


def test_no_room_to_try_a_kernel_says_nothing_of_it():
    def full(packing, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        fault_of(full, CPU, torch.float32, 8)


@pytest.fixture
def like_cuda(monkeypatch):
    """A CPU that decides as CUDA does; its first kernel is missing, its second the plain computation."""
    tried = []

    def plain(packing, device):
        tried.append(packing)
        return lambda q, k, v: written_out(q, k, v, packing.lengths)

    monkeypatch.setattr(attention, "_has_kernels", lambda device: True)
    monkeypatch.setattr(attention, "xformers", raises)
    monkeypatch.setattr(attention, "varlen", plain)
    for kept in (attention.choose, attention._ready):
        kept.cache_clear()
    yield tried
    for kept in (attention.choose, attention._ready):
        kept.cache_clear()


def two_sizes():
    return [torch.randn(2, 3, 28, 28), torch.randn(3, 3, 14, 14)]


def gradients(model, images):
    model.zero_grad()
    sum(tokens.patches.square().sum() + tokens.class_token.sum() for tokens in model.tokens(images)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_recomputed_blocks_take_the_kernel_that_was_chosen_before_them(like_cuda):
    torch.manual_seed(0)
    model, images = tiny.backbone(16), two_sizes()
    model.checkpoint_blocks = True
    recomputed = gradients(model, images)  # the first question of this process, as in a run
    model.checkpoint_blocks = False
    plain = gradients(model, images)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    _trial, real = like_cuda  # one trial, then one preparation for all blocks and all four passes
    assert real.groups == ((2, 17), (3, 5))


def test_a_question_inside_a_checkpoint_has_the_same_answer(like_cuda):
    """Hooks of the checkpoint count what is saved, and must not see the trial's tensors."""
    found = []

    def ask(x):
        found.append(choose(CPU, torch.float32, 8, False))
        return x.square()

    x = torch.ones(3, requires_grad=True)
    checkpoint(ask, x, use_reentrant=False).sum().backward()
    assert found == [attention.varlen] * 2 and x.grad.tolist() == [2, 2, 2]


def test_compiled_blocks_hold_no_break(like_cuda):
    torch.manual_seed(0)
    model, images = tiny.backbone(16, depth=1), two_sizes()
    plain = gradients(model, images)
    model.blocks[0].compile(backend="eager", fullgraph=True)
    compiled = gradients(model, images)
    for name in plain:
        torch.testing.assert_close(plain[name], compiled[name])


def test_subsets_of_sequences_are_attended_by_the_same_kernel(like_cuda, monkeypatch):
    torch.manual_seed(0)
    model, images = tiny.backbone(16), [torch.randn(4, 3, 28, 28), torch.randn(6, 3, 14, 14)]
    kept = draw_kept(DropPath(0.5, 2, 0), (2, 3), Share(0, 0, 2, 2))
    subsets = subsets_of(kept, model.packing(images))
    with torch.no_grad():
        found = model.tokens(images, subsets=subsets)
        assert [packing.groups for packing in like_cuda[1:]] == [((4, 17), (6, 5)), ((2, 17), (3, 5))]
        monkeypatch.setattr(vision_transformer, "prepare", lambda packing, *_: packing)
        expected = model.tokens(images, subsets=subsets)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.patches, theirs.patches)


def test_what_an_evaluation_leaves_in_the_cache_is_fit_for_training(plain_kernels):
    attention._ready.cache_clear()
    with torch.inference_mode():
        first = attention._ready(PACKING, varlen, CPU)
    starts = inspect.getclosurevars(first.attend).nonlocals["starts"]
    assert starts.tolist() == [0, 5, 10, 11, 12, 13, 17] and not starts.is_inference()
    assert attention._ready(Packing(PACKING.groups), varlen, CPU) is first
    attention._ready.cache_clear()


@pytest.mark.parametrize(
    ("working", "chosen"),
    [({xformers, varlen}, xformers), ({varlen}, varlen), (set(), None)],
    ids=["both", "varlen", "neither"],
)
def test_cuda_takes_the_first_way_that_works(working, chosen, monkeypatch, caplog):
    monkeypatch.setattr(attention, "fault_of", lambda kernel, *_: "" if kernel in working else "RuntimeError: no sm")
    ask = choose.__wrapped__  # without the cache
    assert ask(CUDA, torch.bfloat16, 64, False) is chosen
    assert ask(CPU, torch.bfloat16, 64, False) is None
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (chosen is None)
    for words in said:  # once, since the answer is kept: what was tried, why it failed, and what to do
        assert "on cuda (bfloat16, heads of 64)" in words and "varlen: RuntimeError: no sm" in words
        assert words.endswith("use runtime.precision bf16.")


def test_only_the_reference_is_taken_where_gradients_must_repeat(monkeypatch):
    monkeypatch.setattr(attention, "fault_of", lambda *_: "")
    assert choose.__wrapped__(CUDA, torch.bfloat16, 64, True) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", [varlen, xformers])
def test_kernels_equal_the_reference_on_this_device(kernel):
    if kernel is xformers:
        pytest.importorskip("xformers")
    assert fault_of(kernel, CUDA, torch.bfloat16, 64) == ""
