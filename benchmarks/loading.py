"""Loading a saved model: `Dinov2Model.from_pretrained` against timm and transformers, in turns, one process each.

Run  python benchmarks/loading.py [--sizes s b l] [--rounds 3]      (g needs 10 GiB of disk and of memory)
The folder is what `save_pretrained` writes, with random weights, and lies in the page cache. Time is from the call to a
model in evaluation mode, after imports; memory is what the process grows by, over the size of the weights.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import transformers
from paired import Spread

from dinov2_zoo import Dinov2Model, model_config

LIBRARIES: dict[str, Callable[[Path], torch.nn.Module]] = {
    "dinov2_zoo": lambda folder: Dinov2Model.from_pretrained(folder),
    "timm": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
    "transformers": lambda folder: transformers.AutoModel.from_pretrained(folder).eval(),
}


def measure(load: Callable[[Path], torch.nn.Module], folder: Path) -> tuple[float, float]:
    """Seconds, and GiB that a process of its own grows by."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child() -> None:
        torch.set_num_threads(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        model = load(folder)
        seconds = time.perf_counter() - start
        for parameter in model.parameters():
            parameter.sum()  # a file that is only mapped is read here
        queue.put((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20))

    process = context.Process(target=child)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the measured process ended with {process.exitcode}: not enough memory?")
    return queue.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["s", "b", "l"], choices=["s", "b", "l", "g"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:  # what libraries import at their first call is no loading
        Dinov2Model(model_config("vitti14_reg4")).save_pretrained(Path(scratch) / "model")
        for load in LIBRARIES.values():
            load(Path(scratch) / "model")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            Dinov2Model(model_config(f"vit{size}14_reg4")).save_pretrained(folder)
            weights = (folder / "model.safetensors").stat().st_size / 2**30
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in LIBRARIES}
            for _ in range(options.rounds + 1):  # the first is not counted
                for name, load in LIBRARIES.items():
                    found[name].append(measure(load, folder))
        print(f"ViT-{size}/14, {weights:.2f} GiB")
        ours = found["dinov2_zoo"][1:]
        for name, results in found.items():
            seconds, memory = ([r[i] for r in results[1:]] for i in (0, 1))
            ratio = Spread.of([t / o[0] for t, o in zip(seconds, ours, strict=True)])
            share = Spread.of([m / weights for m in memory])
            print(f"  {name:13} {Spread.of(seconds)} s  {ratio} of ours  memory {share}")


if __name__ == "__main__":
    main()
