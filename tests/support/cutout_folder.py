"""Small cut-outs with transparent grounds, drawn for tests."""

from PIL import Image, ImageDraw


def draw_cutouts(root, count=4):
    """Red disks, green squares, blue triangles, and one picture without a transparent ground."""
    shapes = {
        "disks": ("ellipse", (220, 40, 40)),
        "squares": ("rectangle", (40, 200, 40)),
        "triangles": ("polygon", (40, 40, 230)),
    }
    for name, (shape, colour) in shapes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
            draw = ImageDraw.Draw(image)
            shade = tuple(min(255, value + 4 * number) for value in colour)
            if shape == "polygon":
                draw.polygon([(5, 54), (54, 54), (30, 5)], fill=(*shade, 255))
            else:
                getattr(draw, shape)((5, 5, 54, 54), fill=(*shade, 255))
            image.save(root / name / f"{number}.png")
    Image.new("RGB", (20, 20)).save(root / "squares" / "opaque.png")
    return root
