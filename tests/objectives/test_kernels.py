"""The fused kernel: its results in Triton's interpreter, how it is chosen, and that it compiles for chips not here."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from dinov2_zoo.objectives import fastest

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton comes with torch's CUDA builds on Linux only"
)


@needs_triton
def test_in_tritons_interpreter():
    # It must be on before Triton is imported.
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", HERE / "interpreted_kernels.py"]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], env=env)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]


def test_on_a_cpu_nothing_is_tried_nor_said():
    module = tiny.prototypes()
    assert fastest.prepare(module, torch.device("cpu"), torch.bfloat16) is None
    assert fastest._ready(torch.zeros(3, 4), 4) is None


def test_before_training_every_width_is_tried_once_and_said(monkeypatch):
    asked = []

    def tile(device, width, dtype):
        asked.append((device.type, width, dtype))
        return None if width == 5 else "cut in tiles"

    monkeypatch.setattr(fastest, "_tile", tile)
    module = torch.nn.ModuleList([tiny.prototypes(), tiny.prototypes()])
    module[1].student.dino.last_layer.weight_v = torch.nn.Parameter(torch.zeros(8, 6))
    said = fastest.prepare(module, torch.device("cuda"), torch.bfloat16)
    assert asked == [("cuda", width, torch.bfloat16) for width in sorted({w for _, w, _ in asked})] and len(asked) == 2
    assert "6 wide by the fused kernel (cut in tiles)" in said and "5 wide in chunks" in said


def test_half_precision_goes_in_only_where_networks_run_in_it(monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    def fused(*args, dtype, **options):
        seen.append(dtype)
        raise Stop

    monkeypatch.setattr(fastest, "_ready", lambda tokens, width: "cut")
    monkeypatch.setattr("dinov2_zoo.objectives.kernels.fused.fused_column_log_sums", fused)
    module, batch = tiny.prototypes(), tiny.batch()
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), pytest.raises(Stop):
            module(batch)
    assert seen == [torch.bfloat16, torch.float32] and fastest.product_dtype() == torch.float32


# Shared memory that a program may have: A100, H100; and what it is cut to there.
CHIPS = [
    (80, torch.float32, 0, 163),
    (80, torch.bfloat16, 1, 163),
    (90, torch.float32, 0, 227),
    (90, torch.bfloat16, 0, 227),
    (86, torch.bfloat16, 2, 99),
]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("chip", "dtype", "number", "kib"), CHIPS)
def test_compiles_for_gpus_that_are_not_here(tmp_path, chip, dtype, number, kib):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dinov2_zoo.objectives.kernels.attend import attend_kernel
    from dinov2_zoo.objectives.kernels.choice import TILES

    tile = TILES[dtype][number]
    pointer = "*fp32" if dtype == torch.float32 else "*bf16"
    kinds = {"queries": pointer, "keys": pointer, "bias": "*fp32", "values": pointer, "log_sums": "*fp32"}
    kinds |= {"means": "*fp32", "many_queries": "i32", "many_keys": "i32", "key_width": "i32", "value_width": "i32"}
    constants = {"QUERIES": tile.queries, "KEYS": tile.keys, "WIDTH": 256, "WITH_MEANS": True, "WIDEN": False}
    signature = kinds | {"scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(list(kinds).index(n),): [["tt.divisibility", 16]] for n in kinds if not n.startswith("many")}
    source = ASTSource(attend_kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)
    assert compiled.metadata.shared <= kib * 1024
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "--dump-resource-usage", tmp_path / "kernel.cubin"], capture_output=True, text=True)
    assert re.search(r"STACK:(\d+)", said.stdout).group(1) == "0", "registers are spilled"
