"""Two sets of natural photos out of packages, for benchmarks whose settings are chosen on one of them only.

Run  python benchmarks/photo_sets.py [--folder .cache/photo-sets]         (Debian or Ubuntu: 440 MB by apt-get download)
Makes, for set a (to choose settings on) and set b (to report):
    train      unlabelled pictures of about 256 px: whole photos and tiles of large ones
    heldout    the same of other photos
    labelled-* folders of labelled pictures, a class each; no class and no picture of one set is in the other
and set all, the photos of both that are free, in more tiles, for a student that is to be used. What is kept out of a
and b is kept out of it too.

A photo is in one place only: the split is by scene, not by tile, and photos of one scene (a stereo pair, the same
wallpaper twice, the same monument in two activities) stay together. Renders, drawings, paintings and test charts were
left out by eye. Every draw is seeded by name, so two machines with the same packages make the same pictures.
The pictures keep the terms under which their packages ship them; nothing is copied into this repository.
"""

import argparse
import hashlib
import io
import json
import random
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from dinov2_zoo.data.package_photos import HELDOUT, TRAIN, packaged_path

PACKAGES = (
    "gcompris-qt-data",
    "mate-backgrounds",
    "opencv-doc",
    "plasma-workspace-wallpapers",
    "tuxpaint-stamps-default",
)
SIDE = 256  # px, the short side of what is written
TRAIN_TILES = {"a": 12, "b": 12, "all": 40}  # at most, of one photo
HELDOUT_TILES = 3
NOT_FREE = "python/foolbox/"  # its ImageNet samples keep their own terms
FLAT = 12.0  # standard deviation of grey levels under which a tile shows nothing but sky or water

WALLPAPERS = "usr/share/wallpapers/*/contents/images/"
OPENCV = "usr/share/doc/opencv-doc/examples/"
GCOMPRIS = "gcompris/src/activities/"
NO_SCENE = ("hubble_deep_field", "ihc", "moon", "page", "retina", "text")  # print, microscopes and telescopes
# Per set: patterns of photos. Of opencv-doc's 91 and gcompris's 882 pictures, those that are photos.
PHOTOS = {
    "a": (
        "usr/share/backgrounds/mate/nature/*.jpg",
        *(f"python/{name}" for name in TRAIN + HELDOUT if Path(name).stem not in NO_SCENE),
        GCOMPRIS + "erase/resource/*.webp",
        GCOMPRIS + "explore_world_animals/resource/animals/*.webp",
        GCOMPRIS + "explore_farm_animals/resource/animals/*.webp",
        GCOMPRIS + "categorization/resource/images/tools/*.webp",
        GCOMPRIS + "categorization/resource/images/others/*.webp",
    ),
    "b": (
        *(
            f"usr/share/wallpapers/{name}/contents/images/*"
            for name in (
                "Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "EveningGlow", "FallenLeaf", "Grey", "Kite",
                "OneStandsOut", "Path", "Volna", "summer_1am",
            )
        ),
        *(
            f"{OPENCV}data/{name}.*"
            for name in (
                "aero1", "aero3", "aloe[LR]", "apple", "baboon", "basketball[12]", "board", "box_in_scene",
                "building", "butterfly", "chicky_512", "ela_original", "fruits", "graf[13]", "home", "left",
                "leuven[AB]", "licenseplate_motion", "messi5", "orange", "right", "rubberwhale[12]", "squirrel_cls",
                "stuff",
            )
        ),
        OPENCV + "alphamat/input_images/plant.jpg",
        OPENCV + "hfs/data/*.jpg",
        OPENCV + "text/scenetext0*.jpg",
        OPENCV + "text/scenetext_segmented_word0[1-5].jpg",
        OPENCV + "dnn_superres/butterfly.png",
        GCOMPRIS + "clickgame/resource/sea*.webp",
        GCOMPRIS + "explore_monuments/resource/*/*.webp",
        GCOMPRIS + "explore_world_music/resource/music/*.webp",
        *(
            f"{GCOMPRIS}details/resource/image/{name}_background.webp"
            for name in (
                "Chenonceau", "EgeskovSlotSpejling", "EilanDonanCastle", "FanoeWindmill", "GizahPyramids",
                "Louvre_2007_02_24_c", "NDP", "Nagoya", "Neuschwanstein", "OperaSidney", "TajMahal", "TourEiffel",
                "TowerBridgeLondon",
            )
        ),
    ),
}  # fmt: skip
# Photos that share one of these words show one scene, whatever their hash says.
SCENES = (
    "aero", "aloe", "basketball", "box_in_scene", "brandenburggate", "chenonceau", "christtheredeemer", "colosseum",
    "eiffel", "ela_original", "giza", "graf", "greatpyramid", "greatwall", "leuven", "motorcycle", "mountrushmore",
    "neuschwanstein", "opera", "rubberwhale", "statueofliberty", "tajmahal", "utubminar", "victoriamemorial",
)  # fmt: skip
STAMPS = "usr/share/tuxpaint/stamps/"
CATEGORIES = GCOMPRIS + "categorization/resource/images/"
# Per set and labelled folder: class, patterns. Cut-outs are put on three grounds, photos are taken as they are.
LABELLED = {
    "a": {
        "animals": {
            "birds": (STAMPS + "animals/birds/*",),
            "hoofed": tuple(f"{STAMPS}animals/mammals/{kind}/*" for kind in ("bovines", "equines", "deer", "camel")),
            "insects": (STAMPS + "animals/insects/*",),
            "mammals": (
                STAMPS + "animals/mammals/*.png",
                *(f"{STAMPS}animals/mammals/{kind}/*" for kind in ("apes", "bears", "cats", "dogs", "rodents")),
            ),
        },
        "things": {
            "dishes": (STAMPS + "household/dishes/*", STAMPS + "household/dishes/*/*"),
            "music": (STAMPS + "hobbies/music/*/*",),
            "sports": (STAMPS + "sports/*",),
            "tools": (STAMPS + "household/tools/*",),
            "vehicles": (STAMPS + "vehicles/*", STAMPS + "vehicles/*/*", STAMPS + "military/vehicles/*"),
        },
    },
    "b": {
        "plants": {
            "flowers": (STAMPS + "plants/flowers/*",),
            "fruit": (STAMPS + "food/fruit/*",),
            "trees": (STAMPS + "plants/trees/*",),
            "vegetables": (STAMPS + "food/vegetables/*",),
        },
        "scenes": {
            "dams": (CATEGORIES + "renewable/dam*",),
            "fishes": (CATEGORIES + "fishes/*",),
            "monuments": (CATEGORIES + "monuments/*",),
            "solar": (CATEGORIES + "renewable/solar*",),
            "windmills": (CATEGORIES + "renewable/windmill*",),
        },
    },
}


# ---- packages
def fetch(folder: Path) -> None:
    """Download the Debian packages into `folder`/deb and unpack them; installs nothing, needs no rights."""
    for package in PACKAGES:
        unpacked = folder / package
        if unpacked.exists():
            continue
        archives = folder / "deb"
        archives.mkdir(parents=True, exist_ok=True)
        if not any(archives.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", package], cwd=archives, check=True)
        subprocess.run(["dpkg", "-x", next(archives.glob(f"{package}_*.deb")), unpacked], check=True)


def qt_resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a Qt resource archive (.rcc), by path. Format: Qt's documentation of rcc; zlib or no compression."""
    raw = path.read_bytes()
    magic, version, tree, data, names = struct.unpack_from(">4s4I", raw)
    if magic != b"qres":
        raise SystemExit(f"{path} is no Qt resource archive: fetch the package again.")
    node_size = 22 if version >= 2 else 14

    def name(offset: int) -> str:
        (length,) = struct.unpack_from(">H", raw, names + offset)
        return raw[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def walk(index: int, parent: str) -> Iterator[tuple[str, bytes]]:
        at = tree + index * node_size
        name_at, flags = struct.unpack_from(">IH", raw, at)
        full = f"{parent}/{name(name_at)}".lstrip("/") if index else ""
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">2I", raw, at + 6)
            for child in range(first, first + count):
                yield from walk(child, full)
            return
        start = data + struct.unpack_from(">I", raw, at + 10)[0]
        (length,) = struct.unpack_from(">I", raw, start)
        content = raw[start + 4 : start + 4 + length]
        yield full, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


def all_pictures(folder: Path) -> dict[str, bytes | Path]:
    """Every file that the packages ship, by a name without a machine's paths."""
    found: dict[str, bytes | Path] = {f"python/{name}": packaged_path(name) for name in TRAIN + HELDOUT}
    for package in PACKAGES:
        for path in (folder / package).rglob("*"):
            if path.suffix == ".rcc":
                found.update(qt_resources(path))
            elif path.suffix in (".jpg", ".png") and path.is_file() and not path.is_symlink():
                found[path.relative_to(folder / package).as_posix()] = path
    return dict(sorted(found.items()))


def matching(pictures: dict[str, bytes | Path], patterns: tuple[str, ...]) -> list[str]:
    """Names that match a pattern, none twice; mirrored copies and cartoons of stamps are left out."""
    names = [name for name in pictures if any(PurePosixPath(name).match(pattern) for pattern in patterns)]
    return [name for name in names if name.endswith((".jpg", ".png", ".webp")) and not re.search(LEFT_OUT, name)]


LEFT_OUT = r"_mirror|_flip|cartoon|_mask\."


def opened(content: bytes | Path, mode: str = "RGB") -> Image.Image:
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content).convert(mode)


# ---- scenes
def difference_hash(image: Image.Image) -> int:
    """64 bits: which of two neighbours on a grid of 9 x 8 is lighter. Equal pictures of any size differ in a few."""
    grid = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int("".join("1" if bit else "0" for bit in (grid[:, 1:] > grid[:, :-1]).flat), 2)


def scenes(images: dict[str, Image.Image]) -> list[list[str]]:
    """Names grouped by scene: the same word of SCENES, or hashes that differ in 8 bits or fewer."""
    names = list(images)
    group = {name: name for name in names}
    hashes = {name: difference_hash(images[name]) for name in names}
    words = {name: next((word for word in SCENES if word in Path(name).stem.lower()), None) for name in names}
    for i, one in enumerate(names):
        for other in names[:i]:
            same_word = words[one] is not None and words[one] == words[other]
            if same_word or (hashes[one] ^ hashes[other]).bit_count() <= 8:
                old, new = group[one], group[other]
                group = {name: new if of == old else of for name, of in group.items()}
    return [[name for name in names if group[name] == head] for head in sorted(set(group.values()))]


# ---- pictures
def tiles(image: Image.Image, limit: int, draw: random.Random) -> list[Image.Image]:
    """The whole photo and, of a large one, tiles at two and four times the scale: at most `limit`, by chance."""
    width, height = image.size
    found = [resized(image)]
    for parts in (2, 4):
        side = min(width, height) // parts
        if side < 200:
            break
        columns, rows = width // side, height // side
        boxes = [(x * side, y * side, (x + 1) * side, (y + 1) * side) for y in range(rows) for x in range(columns)]
        cut = [image.crop(box) for box in boxes]
        found += [resized(tile) for tile in cut if np.asarray(tile.convert("L")).std() >= FLAT]
    return found[:1] + draw.sample(found[1:], min(limit - 1, len(found) - 1))


def resized(image: Image.Image) -> Image.Image:
    """Short side of 256 px, long side of at most 384 (the middle of longer ones)."""
    scale = SIDE / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS, reducing_gap=3)
    width, height = image.size
    left, top = max(0, width - 384) // 2, max(0, height - 384) // 2
    return image.crop((left, top, min(width, left + 384), min(height, top + 384)))


def on_ground(stamp: Image.Image, ground: Image.Image) -> Image.Image:
    """A cut-out of 8/10 of the side in the middle of a square ground."""
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    scale = 0.8 * SIDE / max(stamp.size)
    stamp = stamp.resize([max(1, round(side * scale)) for side in stamp.size], Image.Resampling.LANCZOS)
    picture = ground.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.alpha_composite(stamp, ((SIDE - stamp.width) // 2, (SIDE - stamp.height) // 2))
    return picture.convert("RGB")


def write(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=92)


def stem(name: str) -> str:
    """A file name that says where a picture comes from, "explore_monuments-india-charminar"."""
    parts = [part for part in Path(name).with_suffix("").parts if part not in DULL]
    return "-".join(parts[-3:])


DULL = {
    "contents", "images", "image", "resource", "data", "examples", "animals", "nature", "src", "activities", "usr",
    "share", "stamps", "python", "doc", "music",
}  # fmt: skip


def write_photos(
    groups: list[list[str]], images: dict[str, Image.Image], folder: Path, per_scene: int
) -> list[Image.Image]:
    """Write each scene's tiles; returns them."""
    written: list[Image.Image] = []
    for group in groups:
        for name in group:
            cut = tiles(images[name], max(1, per_scene // len(group)), random.Random(name))
            for index, tile in enumerate(cut):
                write(tile, folder / f"{stem(name)}-{index}.jpg")
            written += cut
    return written


def write_labelled(
    names: list[str], pictures: dict[str, bytes | Path], folder: Path, grounds: list[Image.Image]
) -> int:
    """Write one class: a photo once, a cut-out on grey and on two photos, as <object>@<ground>. Returns its objects."""
    for name in names:
        picture = opened(pictures[name], "RGBA")
        if picture.getchannel("A").getextrema()[0] == 255:
            write(resized(picture.convert("RGB")), folder / f"{stem(name)}@0.jpg")
            continue
        drawn = random.Random(name).sample(grounds, 2)
        for index, ground in enumerate([Image.new("RGB", (SIDE, SIDE), (128, 128, 128)), *drawn]):
            write(on_ground(picture, ground), folder / f"{stem(name)}@{index}.jpg")
    return len(names)


def split(groups: list[list[str]], share: float = 0.25) -> tuple[list[list[str]], list[list[str]]]:
    """Scenes for training and a share of them kept out, by a draw that depends on their names only."""
    groups = sorted(groups, key=lambda group: hashlib.sha256(min(group).encode()).hexdigest())
    kept = round(share * len(groups))
    return groups[kept:], groups[:kept]


def checksum(folder: Path) -> str:
    """Of all pictures in a folder, names included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.jpg")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def make(folder: Path) -> dict[str, object]:
    """Make all sets under `folder`, from scratch. Returns what `folder`/sets.json records."""
    fetch(folder / "packages")
    pictures = all_pictures(folder / "packages")
    labels = {
        side: {
            task: {label: matching(pictures, patterns) for label, patterns in classes.items()}
            for task, classes in LABELLED[side].items()
        }
        for side in "ab"
    }
    labelled = {name for tasks in labels.values() for classes in tasks.values() for n in classes.values() for name in n}
    of = {name: side for side in "ba" for name in matching(pictures, PHOTOS[side])}
    images = {name: opened(pictures[name]) for name in [*of, *(n for n in labelled if n.endswith(".webp"))]}
    # A scene with a labelled photo gives no unlabelled one.
    free = [group for group in scenes(images) if not labelled.intersection(group)]
    if shared := [group for group in free if len({of[name] for name in group}) > 1]:
        raise SystemExit(f"These photos of both sets look alike: {shared}. Take one out of PHOTOS.")
    sides = {side: split([group for group in free if of[group[0]] == side]) for side in "ab"}
    train, heldout = (
        [[n for n in group if not n.startswith(NOT_FREE)] for group in [*sides["a"][part], *sides["b"][part]]]
        for part in (0, 1)
    )
    sides["all"] = train, heldout
    record: dict[str, object] = {}
    for side, (train, heldout) in sides.items():
        shutil.rmtree(folder / side, ignore_errors=True)
        tests = write_photos(heldout, images, folder / side / "heldout", HELDOUT_TILES)
        count = len(write_photos(train, images, folder / side / "train", TRAIN_TILES[side]))
        tasks = {
            f"labelled-{task}": {
                label: write_labelled(names, pictures, folder / side / f"labelled-{task}" / label, tests)
                for label, names in classes.items()
            }
            for task, classes in labels.get(side, {}).items()
        }
        record[side] = {
            "photos": {"train": sum(map(bool, train)), "heldout": sum(map(bool, heldout))},
            "pictures": {"train": count, "heldout": len(tests)},
            **tasks,
            "sha256": checksum(folder / side),
        }
    (folder / "sets.json").write_text(json.dumps(record, indent=1))
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".cache/photo-sets"))
    print(json.dumps(make(parser.parse_args().folder), indent=1))


if __name__ == "__main__":
    main()
