"""Folders of plain pictures whose class is their colour."""

from PIL import Image

from dinov2_zoo.data.sources import open_source


def colours(root, classes=("blue", "green", "red"), count=6):
    """Folders of plain pictures whose class is their colour."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            strong, weak = 200 + 8 * number, 10 * number
            colour = {"blue": (weak, 30, strong), "green": (weak, strong, 30), "red": (strong, weak, 30)}[name]
            Image.new("RGB", (40, 32), colour).save(root / name / f"{number}.png")
    return open_source(str(root))
