"""Parts of the evaluation beside the plain way to do them, in turns in one go: ratios of time and memory.

knn         Exact neighbours of many queries in a large bank, against faiss-cpu's flat index (pip install faiss-cpu).
grid        52 linear probes as wide matrices under one SGD, against 52 torch.nn.Linear with 52 torch.optim.SGD.
depth       The lin.4 head at token resolution, against enlarging first as the protocol says; a training step.
extraction  Stored features of photos, decoded ahead by worker processes, against a plain loop.
reading     Batches of random crops, made ahead by worker processes while the model works, against one after the other.

Run  python benchmarks/evaluation.py [knn grid depth extraction reading] [--threads 1] [--rounds 5]
     python benchmarks/evaluation.py knn --bank 1281167 --queries 50000 --rounds 1      (the size of ImageNet)
"""

import argparse
import os
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import torch
import torch.nn.functional as F
from paired import Spread, paired_seconds, peak_gib, ratio
from torch import nn

from dinov2_zoo import Dinov2Model, model_config
from dinov2_zoo.config.classification import RATES
from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.evaluation.classification.knn import knn_accuracy
from dinov2_zoo.evaluation.classification.linear import RandomCrop
from dinov2_zoo.evaluation.classification.probe_grid import ProbeGrid
from dinov2_zoo.evaluation.depth.bins_head import BinsHead
from dinov2_zoo.evaluation.encoders.encoder import BackboneEncoder, Layer
from dinov2_zoo.evaluation.encoders.feature_store import Kind, stored_features
from dinov2_zoo.evaluation.encoders.reading import ReadImages, TrainingOrder, read_ahead
from dinov2_zoo.evaluation.workspace import Workspace
from dinov2_zoo.training.distributed import SingleProcess


def report(title: str, pairs: list[tuple[float, float]], against: str) -> None:
    ours = statistics.median(ours for ours, _ in pairs)
    print(f"{title}: {ours:.2f} s, {against} / ours {ratio(pairs)}", flush=True)


def knn(options: argparse.Namespace) -> None:
    import faiss

    faiss.omp_set_num_threads(options.threads)
    draw = torch.Generator().manual_seed(0)
    dim, k = 384, 200
    bank = torch.randn(options.bank, dim, generator=draw, dtype=torch.float32).half()
    queries = torch.randn(options.queries, dim, generator=draw).half()
    labels = torch.randint(0, 1000, (options.bank,), generator=draw)
    truth = torch.randint(0, 1000, (options.queries,), generator=draw)

    def ours() -> object:
        torch.set_num_threads(options.threads)
        return knn_accuracy(bank, labels, queries, truth, k=(10, 20, 100, k))

    def theirs() -> object:
        """Index and search; the vote, which comes on top, is left out."""
        index = faiss.IndexFlatIP(dim)
        index.add(F.normalize(bank.float(), dim=1).numpy())
        return index.search(F.normalize(queries.float(), dim=1).numpy(), k)

    held = (bank.numel() + queries.numel()) * 2 / 2**30
    print(f"k-NN, {options.queries} queries in {options.bank} x {dim}, k = {k}, bank in fp16")
    print(f"  memory besides features of {held:.2f} GiB: {peak_gib(ours):.2f} GiB, faiss {peak_gib(theirs):.2f} GiB")
    report("  time", paired_seconds(ours, theirs, options.rounds, warm=options.rounds > 1), "faiss")


def grid(options: argparse.Namespace) -> None:
    dim, classes, batch = 384, options.classes, 128
    draw = torch.Generator().manual_seed(0)
    widths = {"last1": dim, "last1+mean": 2 * dim, "last4": 4 * dim, "last4+mean": 5 * dim}
    inputs = {name: torch.randn(batch, width, generator=draw) for name, width in widths.items()}
    labels = torch.randint(0, classes, (batch,), generator=draw)
    wide = ProbeGrid(widths, classes, RATES, draw)
    probes = [(name, nn.Linear(width, classes), rate) for name, width in widths.items() for rate in RATES]
    optimizers = [torch.optim.SGD(probe.parameters(), lr=rate, momentum=0.9) for _, probe, rate in probes]

    def ours() -> None:
        for _ in range(options.steps):
            wide.step(inputs, labels, 1.0, SingleProcess())

    def theirs() -> None:
        for _ in range(options.steps):
            loss = sum(F.cross_entropy(probe(inputs[name]), labels) for name, probe, _ in probes)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()

    pairs = paired_seconds(ours, theirs, options.rounds)
    report(f"52 probes, {classes} classes, width {dim}, batch {batch}, {options.steps} steps", pairs, "separate")
    backbone = BackboneEncoder(Dinov2Model(model_config("vits14")))
    images = torch.randn(8, 3, 224, 224, generator=draw)
    seconds = statistics.median(ours for ours, _ in paired_seconds(lambda: backbone(images), lambda: None, 3))
    once, step = seconds * batch / 8, statistics.median(ours for ours, _ in pairs) / options.steps
    apart = statistics.median(theirs for _, theirs in pairs) / options.steps
    whole = (52 * once + apart) / (once + step)
    print(f"  with ViT-S's pass over the batch, {once:.1f} s: 52 trainings of one probe / ours {whole:.1f}")


def depth(options: argparse.Namespace) -> None:
    dim, side, batch = 384, 37, 2
    head = BinsHead(dim, 4, 0.001, 10.0)
    layers = [Layer(torch.randn(batch, dim), torch.zeros(batch, 0, dim), torch.randn(batch, dim, side, side))] * 4

    def step(order: str) -> None:
        head.zero_grad(set_to_none=True)
        getattr(head, order)(layers).mean().backward()

    pairs = paired_seconds(lambda: step("forward"), lambda: step("naive"), options.rounds)
    report(f"depth lin.4 head, ViT-S, {batch} images of 518 pixels, forward and backward", pairs, "naive order")
    ours, theirs = peak_gib(lambda: step("forward")), peak_gib(lambda: step("naive"))
    print(f"  memory: {ours:.2f} GiB, naive order {theirs:.2f} GiB, ratio {theirs / ours:.1f}")


def extraction(options: argparse.Namespace) -> None:
    model = Dinov2Model(model_config(options.model))
    encoder, source, kind = BackboneEncoder(model), open_source("package:photos/train"), Kind(options.side)
    with tempfile.TemporaryDirectory() as scratch:
        runs = iter(range(10**6))

        def ours() -> object:
            return stored_features(encoder, source, kind, Workspace(SingleProcess(), Path(scratch) / str(next(runs))))

        def theirs() -> object:
            images = (eval_image(decode(source.read(index)), options.side) for index in range(len(source)))
            return torch.cat([encoder(image[None]).class_token for image in images])

        pairs = paired_seconds(ours, theirs, options.rounds)
        work = f"CPU seconds {cpu_seconds(ours):.2f}, plain loop {cpu_seconds(theirs):.2f}"
    rates = Spread.of([len(source) / ours for ours, _ in pairs])
    what = f"extraction, {options.model} at {options.side} pixels, {len(source)} photos"
    print(f"{what}: {rates} images/s, plain loop / ours {ratio(pairs)}; {work}")


def reading(options: argparse.Namespace) -> None:
    encoder, source = BackboneEncoder(Dinov2Model(model_config(options.model))), open_source("package:photos/train")
    read = ReadImages(source, RandomCrop(options.side))
    order = TrainingOrder(len(source), 32, SingleProcess(), steps=options.steps)

    def run(workers: int) -> None:
        for batch in read_ahead(read, order, workers):
            encoder(batch.images)

    pairs = paired_seconds(lambda: run(4), lambda: run(0), options.rounds)
    work = f"CPU seconds {cpu_seconds(lambda: run(4)):.2f}, without workers {cpu_seconds(lambda: run(0)):.2f}"
    report(f"{options.steps} batches of 32 crops, {options.model} at {options.side} pixels", pairs, "no workers")
    print(f"  {work}")


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process and of those that it starts meanwhile and that end: no other load changes them."""

    def used() -> float:
        parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(part.ru_utime + part.ru_stime for part in parts)

    before = used()
    work()
    return used() - before


PARTS = {"knn": knn, "grid": grid, "depth": depth, "extraction": extraction, "reading": reading}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), choices=[*PARTS, []])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bank", type=int, default=320_000)
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--model", default="vits14_reg4")
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
