"""Attention stays inside each sequence, whichever way computes it; a way that fails on this device is never taken."""

import sys
from types import SimpleNamespace

import pytest
import torch
from timm.layers import Attention as TimmAttention
from torch.nn.attention import varlen as torch_varlen

from dinov2_zoo.models import attention
from dinov2_zoo.models.attention import Attention, choose, sdpa, varlen, works, xformers
from dinov2_zoo.models.packing import Packing

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
    for kept in (attention._starts, attention._block_diagonal):
        kept.cache_clear()
    yield
    for kept in (attention._starts, attention._block_diagonal):
        kept.cache_clear()


@pytest.mark.parametrize("attend", [sdpa, varlen, xformers])
def test_every_way_is_softmax_attention_within_each_sequence(attend, plain_kernels):
    q, k, v = queries_keys_values()
    torch.testing.assert_close(attend(q, k, v, PACKING), written_out(q, k, v, LENGTHS), rtol=0, atol=1e-12)


def test_the_module_equals_timms_on_every_sequence():
    torch.manual_seed(0)
    theirs = TimmAttention(24, num_heads=3, qkv_bias=True).double()
    ours = Attention(24, 3).double()
    ours.load_state_dict(theirs.state_dict())
    groups = [torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(3, 2, 24, dtype=torch.float64)]
    packing = Packing.of(groups)
    for mine, group in zip(packing.unpack(ours(packing.pack(groups), packing)), groups, strict=True):
        torch.testing.assert_close(mine, theirs(group), rtol=0, atol=1e-12)


def raises(q, k, v, packing):
    raise NotImplementedError("no kernel for this device")


def looks_across(q, k, v, packing):
    return sdpa(q, k, v, Packing(((1, len(q)),)))


def loses_the_gradient_of_keys(q, k, v, packing):
    return sdpa(q, k.detach(), v, packing)


@pytest.mark.parametrize("broken", [raises, looks_across, loses_the_gradient_of_keys])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_way_works_only_if_outputs_and_gradients_are_right(broken, dtype):
    assert works(sdpa, CPU, dtype, 16)
    assert not works(broken, CPU, dtype, 16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_first_question_may_come_from_an_evaluation(mode):
    # The answer is kept for the whole process: a wrong one would cost training its fast kernel.
    with mode():
        assert works(sdpa, CPU, torch.float32, 8)


def test_what_an_evaluation_leaves_in_the_cache_is_fit_for_training(plain_kernels):
    with torch.inference_mode():
        starts = attention._starts(PACKING, CPU)
    assert starts.tolist() == [0, 5, 10, 11, 12, 13, 17]
    assert not starts.is_inference() and attention._starts(PACKING, CPU) is starts


@pytest.mark.parametrize(
    ("working", "chosen"),
    [({xformers, varlen}, xformers), ({varlen}, varlen), (set(), sdpa)],
    ids=["both", "varlen", "neither"],
)
def test_cuda_takes_the_first_way_that_works(working, chosen, monkeypatch):
    monkeypatch.setattr(attention, "works", lambda attend, *_: attend in working)
    ask = choose.__wrapped__  # without the cache
    assert ask(CUDA, torch.bfloat16, 64) is chosen
    assert ask(CPU, torch.bfloat16, 64) is sdpa


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attend", [varlen, xformers])
def test_kernels_equal_the_reference_on_this_device(attend):
    if attend is xformers:
        pytest.importorskip("xformers")
    assert works(attend, CUDA, torch.bfloat16, 64)
