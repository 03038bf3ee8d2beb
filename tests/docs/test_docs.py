"""README and docs/: every block of Python runs, every command is one that its parser takes, no link leads nowhere."""

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from dinov2_zoo import Dinov2Model, cli
from dinov2_zoo.arguments.parser import config_parser, option_names
from dinov2_zoo.commands import COMMANDS
from dinov2_zoo.config import DistillConfig, OptimConfig, PretrainConfig, to_dict
from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.config.targets import StoreTargetsConfig
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.hub.registry import REGISTRY
from dinov2_zoo.models.students import build_student
from dinov2_zoo.recipes.plan import PlanConfig
from dinov2_zoo.targets.layout import Group, Layout
from dinov2_zoo.targets.manifest import Manifest, Teacher, write_manifest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

CHEAP = {"models", "status", "embed", "search", "verify", "convert"}
"""Commands that are run here, too: seconds on a small model, no network."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    needs: str
    """Why it is not run here: the fence's title, as in ```python title="needs a network"."""
    text: str

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks(language):
    fence = re.compile(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    for page in PAGES:
        whole = page.read_text()
        for found in fence.finditer(whole):
            if found[1] == language:
                line = whole[: found.start()].count("\n") + 2
                yield Block(page, line, found[1], found[2] or "", found[3])


def prose():
    """Pages without their fenced blocks."""
    return {page: re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL) for page in PAGES}


PYTHON = list(blocks("python"))
COMMAND_LINES = [
    (block, line)
    for block in blocks("sh")
    for line in block.text.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that holds what the pages take for granted: photos, the demo's run, the recipes."""
    root = tmp_path_factory.mktemp("docs")
    source = open_source("package:photos/train")
    for i in range(len(source)):
        # PHOTOS, PHOTO.jpg: the placeholders of the pages.
        for folder in ("photos", "PHOTOS"):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / Path(source.name(i)).name).write_bytes(source.read(i))
    shutil.copy(ROOT / "docs/demo_features.jpg", root / "PHOTO.jpg")
    student = build_student("vitti14_reg4", 112)
    Dinov2Model.from_state(student.config, student.state_dict()).save_pretrained(root / "runs/demo/student")
    (root / "runs/mine/checkpoints").mkdir(parents=True)
    config = DistillConfig(name="mine", data="photos", optim=OptimConfig(steps=10, warmup_steps=1))
    (root / "runs/mine/config.json").write_text(json.dumps({"config": to_dict(config)}))
    (root / "targets/mine").mkdir(parents=True)
    layout = Layout(30, 4, (Group(2, 256),), 768, 192)
    settings = {"data": "photos", "crops": {"local_count": 0}}
    write_manifest(
        root / "targets/mine", Manifest(settings, layout, Teacher("", "", 14, 1), "", "", {}, {}, None, whole=True)
    )
    shutil.copytree(ROOT / "docs", root / "docs")
    (root / "recipes").symlink_to(ROOT / "recipes")
    return root


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) < 10_000


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_is_complete(block):
    lint = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E9,F821", "--stdin-filename", "x.py", "-"]
    done = subprocess.run(lint, input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", [block for block in PYTHON if not block.needs], ids=str)
def test_python_runs_as_it_stands(block):
    """Alone, with nothing defined before it; what earlier blocks of the pages wrote to disk is there."""
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("block", "line"), COMMAND_LINES, ids=lambda v: str(v) if isinstance(v, Block) else "")
def test_commands_are_taken_by_their_parsers(block, line, monkeypatch, capsys):
    words = shlex.split(line)
    if words[0] in ("accelerate", "torchrun", "sbatch"):
        words = launched(words)
    if words[0] == "python":
        script = ROOT / words[1]
        if script.parent.name == "recipes":
            words = ["dinov2-zoo", script.stem.replace("_", "-"), *words[2:]]
    if words[0] == "dinov2-zoo" and words[1] in cli.recipe_files():
        with pytest.raises(SystemExit) as end:  # its settings are printed, and nothing is done
            cli.obey([*words[1:], "--print_config"])
        assert end.value.code in (None, 0), capsys.readouterr().err
    elif words[0] == "dinov2-zoo":
        if words[1] in COMMANDS and (words[1] not in CHEAP or block.needs):
            monkeypatch.setitem(COMMANDS, words[1], functools.wraps(COMMANDS[words[1]])(lambda *_, **__: None))
        if words[1] == "embed":  # which does not overwrite what another page has made
            Path("features.parquet").unlink(missing_ok=True)
        cli.obey(words[1:])
    elif words[0] == "python":
        source = script.read_text() + (ROOT / "benchmarks/network.py").read_text()
        assert [o for o in words if o.startswith("--") and f'"{o}"' not in source] == []
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert words[:2] == ["pip", "install"], "no check for this command: add one here"
        _, extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")
        extras = re.findall(r"^(\w+) = \[", extras.split("\n[")[0], re.MULTILINE)
        assert set(re.findall(r"\w+", words[2])) <= set(extras)


def launched(words):
    """What a launcher starts, as `python FILE ...`; the launcher's own options are checked with its parser."""
    if words[0] == "accelerate":
        known = launch_command_parser().parse_args(words[2:])
        file = f"recipes/{known.training_script.rsplit('.')[-1]}.py" if known.module else known.training_script
        return ["python", file, *known.training_script_args]
    start = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return ["python", *words[start:]]


def test_settings_that_are_mentioned_exist():
    names = {"help", "version", "print_config", "quiet", "config_file", "foreground", "costs"}  # of accelerate, too
    for config in (DistillConfig, PretrainConfig, EvaluateConfig, StoreTargetsConfig, PlanConfig):
        names |= set(option_names(config_parser(config, usage="", resumes=True)))
    for function in COMMANDS.values():
        names |= set(function.__annotations__)
    groups = {name.split(".")[0] for name in names if "." in name} - {"data"}
    missing = []
    for page, text in prose().items():
        for code in re.findall(r"`([^`\n]+)`", text):
            found = re.findall(r"--([a-z][\w.]*)", code)
            if re.fullmatch(r"\w+\.[\w.]+", code) and code.split(".")[0] in groups:
                found.append(code)
            missing += [f"{page.name}: {name}" for name in found if name not in names]
    assert not missing, missing


def test_files_that_are_mentioned_exist():
    missing = []
    for page in PAGES:
        for name in re.findall(r"\b((?:recipes|benchmarks|dinov2_zoo|docs|tests)/[\w./-]*\w)", page.read_text()):
            if not ((ROOT / name).exists() or (ROOT / f"{name}.py").exists()):
                missing.append(f"{page.name}: {name}")
    assert not missing, missing


def test_links_lead_somewhere():
    missing = []
    for page, text in prose().items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("https://"):
                continue
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            if not file.is_file() or (anchor and anchor not in anchors(file)):
                missing.append(f"{page.name}: {target}")
    assert not missing, missing


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", prose()[page.resolve()], re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_the_model_table_is_the_registrys():
    rows = re.findall(r"^\| `(vit\w+)` \| ([\d.]+) \| (.*?) \| ([\d.]+) \| ([\d.]+) \|$", PAGES[0].read_text(), re.M)
    assert rows == [
        (e.name, f"{e.parameters / 1e6:.1f}", e.teacher, f"{e.knn}", f"{e.linear}") for e in REGISTRY.values()
    ]


def test_every_word_of_the_command_is_in_the_docs():
    text = "".join(page.read_text() for page in PAGES)
    assert [word for word in (*COMMANDS, *cli.recipe_files()) if f"dinov2-zoo {word}" not in text] == []


def test_the_site_builds(place):
    shutil.copy(ROOT / "mkdocs.yml", place)
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in PAGES[1:]} - {"index"} <= {path.name for path in Path("site").iterdir()}
