"""What a real run survives: recipes/distill.py, killed, damaged and starved, against the same run left alone.

Run  python benchmarks/faults.py [--kills 50]      (a quarter of an hour on two cores, of which most is starting up)

Kills     kill -9 at random instants of training and of checkpoint writes, each followed by --resume.
Damage    bytes flipped and files cut in the newest checkpoint, then --resume.
Disk      a disk of a few MiB that fills up, then one that has room again (needs the right to mount).
Every time the student's weights must be bit-equal to those of the run that nobody disturbed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data as photos

from dinov2_zoo import Dinov2Model
from dinov2_zoo.config import ModelConfig
from dinov2_zoo.training.checkpoints.find import checkpoints, newest_whole
from dinov2_zoo.training.run_folder import holder

RECIPE = Path(__file__).parent.parent / "recipes" / "distill.py"
EVERY = 3
SETTINGS = [
    "--crops.global_size=28", "--crops.local_count=0", "--loader.batch_size=4", "--loader.workers=0",
    "--evaluation.size=28", "--evaluation.heldout_count=0", "--evaluation.fit_images=4", "--evaluation.labelled=null",
    "--init=random", "--student=vitti14_reg4", "--optim.warmup_steps=2", "--runtime.threads=1", "--log.every=1",
    "--runtime.precision=fp32", "--runtime.cpu=true", "--log.progress=false", f"--checkpoint.every={EVERY}",
    "--name=x",
]  # fmt: skip


class Bench:
    """One place with images and a teacher, and runs of the same settings in it."""

    def __init__(self, place: Path, steps: int, background: bool) -> None:
        self.place, self.steps, self.background = place, steps, background
        (place / "images").mkdir()
        photo = Image.fromarray(photos.astronaut())
        for i in range(24):
            photo.crop((8 * i, 60, 8 * i + 48, 108)).save(place / f"images/{i}.png")
        torch.manual_seed(0)
        shape = ModelConfig(embed_dim=128, depth=2, num_heads=2, img_size=28, layer_scale=1.0)
        Dinov2Model(shape).save_pretrained(place / "teacher")

    def start(self, runs: Path, *more: str) -> subprocess.Popen[str]:
        """Begin or resume a run in a process of its own."""
        settings = [*SETTINGS, f"--optim.steps={self.steps}", f"--data={self.place}/images"]
        settings += [f"--checkpoint.background={str(self.background).lower()}"]
        command = [sys.executable, str(RECIPE), *settings, f"--teacher={self.place}/teacher", f"--runs={runs}", *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, runs: Path, *more: str) -> tuple[int, str]:
        """The same, to its end: exit code and what it printed."""
        process = self.start(runs, *more)
        words, _ = process.communicate(timeout=600)
        return process.returncode, words


def reached(runs: Path) -> int:
    """The last step in the log."""
    path = runs / "x/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def equal(a: Path, b: Path) -> bool:
    """Whether two runs released the same weights, bit for bit, and logged each step once."""
    steps = [json.loads(line)["step"] for line in (b / "x/metrics.jsonl").read_text().splitlines()]
    files = [load_file(runs / "x/student/model.safetensors") for runs in (a, b)]
    same = all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    return same and files[0].keys() == files[1].keys() and steps == list(range(1, steps[-1] + 1))


def kills(bench: Bench, whole: Path, count: int) -> bool:
    """Kill as many lives as asked; a run that finishes is begun anew in another folder."""
    instants = random.Random(0)
    killed = resumed = while_writing = corrupt = finished = 0
    lost: list[int] = []
    runs = bench.place / "killed-0"
    good = True
    while killed < count:
        process = bench.start(runs, "--resume")
        while process.poll() is None and holder(runs / "x") is None:  # until it begins to train
            time.sleep(0.01)
        time.sleep(instants.uniform(0, 3))
        at = reached(runs)
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:  # it had finished by then
            good &= process.returncode == 0 and equal(whole, runs)
            finished += 1
            runs = bench.place / f"killed-{finished}"
            continue
        killed += 1
        while_writing += bool(list((runs / "x/checkpoints").glob(".step-*")))
        found, damaged = newest_whole(runs / "x")
        corrupt += len(damaged)
        saved = int(found.name.removeprefix("step-")) if found else 0
        lost.append(at - saved)
        resumed += bool(found)
    code, words = bench.run(runs, "--resume")
    good &= code == 0 and equal(whole, runs)
    if code:
        print(words)
    print(f"kills {killed}, of them while a checkpoint was being written or removed {while_writing}; resumes {resumed}")
    print(f"steps lost per kill: at most {max(lost)}, on average {sum(lost) / len(lost):.1f} (interval {EVERY})")
    print(f"damaged checkpoints {corrupt}; runs finished {finished + 1}, all bit-equal to the undisturbed one: {good}")
    return good and not corrupt


def damage(bench: Bench, whole: Path) -> bool:
    """Flip a byte in, or cut, each file of the newest checkpoint in turn."""
    tried = said = 0
    good = True
    for name in sorted(path.name for path in checkpoints(whole / "x/checkpoints")[-1].iterdir()):
        for kind in ("flip", "cut"):
            runs = bench.place / f"damaged-{name}-{kind}"
            shutil.copytree(whole, runs)
            shutil.rmtree(runs / "x/student")
            path = checkpoints(runs / "x/checkpoints")[-1] / name
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 16
            path.write_bytes(data if kind == "flip" else data[: len(data) // 2])
            code, words = bench.run(runs, "--resume")
            tried += 1
            said += "Skipped: " in words
            good &= code == 0 and equal(whole, runs)
    print(
        f"damaged files {tried}, found out and said {said}; went on from the one before, bit-equal in the end: {good}"
    )
    return good and said == tried


def disk(bench: Bench, whole: Path) -> bool:
    """A disk on which a few checkpoints fit; then more room."""
    runs = bench.place / "disk"
    runs.mkdir()
    size = 3.5 * sum(f.stat().st_size for f in checkpoints(whole / "x/checkpoints")[-1].iterdir())
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size:.0f}", "tmpfs", runs], capture_output=True
    ).returncode:
        print("full disk: not tried, mounting is not permitted here")
        return True
    try:
        code, words = bench.run(runs, "--checkpoint.keep=100")
        found, damaged = newest_whole(runs / "x")
        print(f"full disk: exit {code}, last whole checkpoint {found and found.name}, damaged {len(damaged)}")
        print("  " + words.strip().splitlines()[-1][:300])
        subprocess.run(["mount", "-o", f"remount,size={20 * size:.0f}", runs], check=True)
        resumed, _ = bench.run(runs, "--resume", "--checkpoint.keep=100")
        good = code == 2 and found is not None and not damaged and resumed == 0 and equal(whole, runs)
        print(f"  with room again: exit {resumed}, bit-equal in the end: {good}")
        return good
    finally:
        subprocess.run(["umount", "-l", runs], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--foreground", action="store_true", help="training waits for each checkpoint")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PYTHONPATH"] = str(RECIPE.parent.parent)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.steps, background=not options.foreground)
        whole = bench.place / "whole"
        code, words = bench.run(whole)
        if code:
            raise SystemExit(words)
        good = [kills(bench, whole, options.kills), damage(bench, whole), disk(bench, whole)]
    raise SystemExit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
