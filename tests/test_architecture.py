"""The lay-out's promises: one arrow of imports, short files, a silent and light import."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dinov2_zoo"
RECIPES = ROOT / "recipes"

# A file imports from its own folder or from one further left.
ARROW = (
    "errors",
    "files",
    "progress",
    "config",
    "data",
    "models",
    "objectives",
    "initialisation",
    "weights",
    "targets",
    "training",
    "hub",
    "evaluation",
    "curation",
    "simulation",
    "reports",
    "arguments",
    "recipes",
    "commands",
    "cli",
)

# The one place where each outside world is spoken to.
ONLY_IN = {
    "accelerate": {"training/runtime.py", "training/launchers.py", "training/sharding.py", "training/trackers.py"},
    "huggingface_hub": {"hub/load.py", "hub/card.py"},
    "xformers": {"models/attention.py"},
    "transformers": {"hub/verify.py", "evaluation/encoders/adapters.py"},
    "onnxruntime": {"hub/verify.py", "hub/export.py"},
    "jsonargparse": {"arguments/parser.py", "arguments/words.py"},
}

# Facade: resolves public names lazily, so it may look anywhere.
FACADE = PACKAGE / "__init__.py"


def files():
    """Every file of the package; the recipes are part of it, though they lie at the top level."""
    inside = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "recipes"]
    return sorted([*inside, *RECIPES.glob("*.py")])


def place(path):
    """Where a file is in the package, as in "data/crops.py" or "recipes/distill.py"."""
    return path.relative_to(ROOT if path.is_relative_to(RECIPES) else PACKAGE)


def imports(path):
    """Dotted names a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module


def stage(path):
    return place(path).parts[0].removesuffix(".py")


def test_imports_follow_the_arrow():
    wrong = []
    for path in files():
        if path == FACADE:
            continue
        for name in imports(path):
            if name.startswith("dinov2_zoo."):
                target = name.split(".")[1]
                if ARROW.index(target) > ARROW.index(stage(path)):
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_each_outside_world_has_one_door():
    wrong = []
    for path in files():
        here = place(path).as_posix()
        for name in imports(path):
            allowed = ONLY_IN.get(name.split(".")[0])
            if allowed is not None and here not in allowed:
                wrong.append(f"{here} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_files_are_short_and_named_for_their_idea():
    for path in files():
        limit = 150 if path.parent == RECIPES else 350
        lines = len(path.read_text().splitlines())
        assert lines <= limit, f"{path.relative_to(ROOT)} has {lines} lines, more than {limit}: split it by idea"
        assert path.stem not in {"utils", "helpers", "common", "misc"}, path


def test_every_file_and_public_name_has_a_docstring():
    missing = []
    for path in files():
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not missing, "\n".join(missing)


def test_import_is_silent_and_needs_no_torch():
    code = (
        "import sys, dinov2_zoo; heavy = {'torch', 'timm', 'accelerate'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_readme_map_names_every_folder_and_recipe():
    readme = (ROOT / "README.md").read_text()
    for path in [*PACKAGE.iterdir(), *RECIPES.glob("*.py")]:
        if path.name.startswith("__") or path.name == "py.typed":
            continue
        assert path.name in readme, f"README's map lacks {path.name}"
