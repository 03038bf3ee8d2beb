"""The plan of the house in numbers: files and lines per folder, arrows between folders, the widest functions.

python benchmarks/structure.py [--package dinov2_zoo]
"""

import argparse
import ast
from collections import Counter
from pathlib import Path


def folder_of(parts: tuple[str, ...]) -> str:
    """First folder below the package, or the name of a file that lies in none."""
    return parts[0].removesuffix(".py")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=Path("dinov2_zoo"))
    package: Path = parser.parse_args().package
    files, lines, loose, arrows, imports = Counter(), Counter(), Counter(), Counter(), 0
    functions: list[tuple[int, str]] = []
    of_docstrings = 0
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        here, tree = folder_of(parts), ast.parse(path.read_text())
        files[here] += 1
        loose[here] += len(parts) == 2 and path.name != "__init__.py"
        lines[here] += len(path.read_text().splitlines())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package.name}."):
                imports += 1
                target = tuple(node.module.split(".")[1:])
                there = target[0]
                if there != here:
                    arrows[here, there] += 1
            if isinstance(node, ast.FunctionDef):
                a = node.args
                count = len([x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")])
                functions.append((count, f"{path.relative_to(package)}:{node.name}"))
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                of_docstrings += (ast.get_docstring(node) or "").startswith("Of ")
    print(f"{sum(files.values())} files, {sum(lines.values())} lines, {imports} imports within the package")
    for folder in files:
        print(f"  {folder:16} {files[folder]:3} files ({loose[folder]} directly in it)  {lines[folder]:5} lines")
    print(f"{len(arrows)} arrows between folders; back and forth: {both(arrows) or 'none'}")
    widest = sorted(functions, reverse=True)[:5]
    print(f"{len(functions)} functions, {sum(n > 8 for n, _ in functions)} with more than 8 parameters; the widest:")
    for count, name in widest:
        print(f"  {count:3} {name}")
    print(f"{of_docstrings} docstrings begin with 'Of'")


def both(arrows: Counter) -> str:
    """Pairs of folders that import each other."""
    return ", ".join(f"{a} <-> {b}" for a, b in arrows if a < b and (b, a) in arrows)


if __name__ == "__main__":
    main()
