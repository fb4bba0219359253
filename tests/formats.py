"""Tiny datasets in the true on-disk formats. Deterministic: each class is its own blob of light
plus noise.
"""

import gzip
import hashlib
import itertools
import pickle
import struct
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from noveltylab.data.inlier import COIL_SEEDED


def blobs(
    n: int, channels: int, side: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """n images uint8 (n, channels, side, side), labels 0..9 in turn.

    A class is a blob at its own place on a circle.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10
    angle = 2 * np.pi * labels / 10
    centre = (
        side / 2
        + side / 4 * np.stack([np.sin(angle), np.cos(angle)], 1)
        + rng.normal(0, side / 40, (n, 2))
    )
    y, x = np.mgrid[:side, :side]
    distance = (y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2
    light = (
        230
        * np.exp(-distance / (2 * (side / 8) ** 2))[:, None]
        * (1 - 0.2 * np.arange(channels))[:, None, None]
    )
    images = np.clip(light + rng.uniform(0, 20, (n, channels, side, side)), 0, 255)
    return images.astype(np.uint8), labels.astype(np.uint8)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An IDX file of unsigned bytes: magic, dimensions big-endian, data."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_mnist(
    root: Path,
    name: str = "MNIST",
    n_train: int = 400,
    n_test: int = 200,
    *,
    compressed: bool = True,
    plain: bool = True,
) -> Path:
    """Write `<root>/<name>/raw` with the four IDX files (name "MNIST" or "FashionMNIST").

    Return that folder.
    """
    folder = root / name / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n, seed in (("train", n_train, 0), ("t10k", n_test, 1)):
        images, labels = blobs(n, 1, 28, seed)
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            content = idx_bytes(array)
            if plain:
                (folder / f"{stem}-{kind}-ubyte").write_bytes(content)
            if compressed:
                (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, 1, mtime=0))
    return folder


def write_cifar10(root: Path, n_train: int = 400, n_test: int = 200) -> Path:
    """Write `<root>/cifar-10-batches-py` as Python-2 style pickles, n_train spread over five.

    Return that folder.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = blobs(n_train, 3, 32, 0)
    parts = [(f"data_batch_{i + 1}", images[i::5], labels[i::5]) for i in range(5)]
    for name, data, label in [*parts, ("test_batch", *blobs(n_test, 3, 32, 1))]:
        (folder / name).write_bytes(
            python2_batch(name, data.reshape(len(data), -1), label.tolist())
        )
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    meta = {"num_cases_per_batch": 10_000, "label_names": names, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def python2_batch(name: str, data: NDArray[np.uint8], labels: list[int]) -> bytes:
    """One batch in the opcodes of Python 2 with NumPy 1: byte strings, numpy.core names, dtype
    flags as integers.
    """

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + text("b") + b"\x87R"
        + b"(" + number(1) + number(data.shape[0]) + number(data.shape[1]) + b"\x86"
        + b"cnumpy\ndtype\n" + text("u1") + number(0) + number(1) + b"\x87R"
        + b"(" + number(3) + text("|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        + b"\x89" + b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    )  # fmt: skip
    items = (
        text("batch_label") + text(name) + text("labels") + b"](" + b"".join(map(number, labels)) + b"e"
        + text("data") + array
        + text("filenames") + b"](" + b"".join(text(f"{i:04d}.png") for i in range(len(labels))) + b"e"
    )  # fmt: skip
    return b"\x80\x02}(" + items + b"u."


def turntable(k: int, angle: float, channels: int, side: int) -> NDArray[np.uint8]:
    """Object k seen from an angle in degrees, uint8 (channels, side, side): a spot of its own size
    circles, on black.
    """
    turn = np.deg2rad(angle)
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) / (side / 2)
    along, across = x * np.cos(turn) + y * np.sin(turn) - 0.3, y * np.cos(turn) - x * np.sin(turn)
    spot = np.exp(-((along / (0.2 + 0.1 * (k % 7))) ** 2) - (across / (0.1 + 0.05 * (k % 5))) ** 2)
    tint = 1 - 0.2 * ((np.arange(channels) + k) % 3)
    return np.asarray(230 * tint[:, None, None] * spot, dtype=np.uint8)


def write_coil(
    root: Path,
    folder: str = "coil-100",
    objects: Iterable[int] = (1, 2, 3),
    views: Iterable[int] = range(0, 360, 5),
    *,
    channels: int = 3,
    side: int = 32,
) -> Path:
    """Write `<root>/<folder>/obj<k>__<n>.png` for k in objects, n in views (COIL-20: 0 to 71);
    return that folder.
    """
    where = root / folder
    where.mkdir(parents=True, exist_ok=True)
    for k, n in itertools.product(objects, views):
        pixels = turntable(k, n, channels, side).transpose(1, 2, 0)
        Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(
            where / f"obj{k}__{n}.png"
        )
    return where


def write_ucsd(
    root: Path,
    clips: tuple[int, int] = (3, 2),
    frames: int = 8,
    *,
    official: bool = True,
    masks: bool = True,
) -> Path:
    """Write UCSD Ped2, `clips` training and test clips of so many 60 x 90 frames.

    Return the dataset's folder.

    official: TIFF with UCSDped2.m; else the layout of the video papers' code, JPEG with ped2.mat. A
    bright square walks through each clip; from the middle of each test clip on, a second and larger
    one does. masks: of the second square, as bitmaps of one bit a pixel in a folder of their own
    beside each test clip.
    """
    from PIL import Image
    from scipy.io import savemat

    folder = root / "UCSD_Anomaly_Dataset.v1p2" / "UCSDped2" if official else root / "ped2"
    rng = np.random.default_rng(0)
    for part, count in (("Train", clips[0]), ("Test", clips[1])):
        for clip in range(1, count + 1):
            low = folder / ("training" if part == "Train" else "testing") / "frames" / f"{clip:02d}"
            into = folder / part / f"{part}{clip:03d}" if official else low
            into.mkdir(parents=True)
            for number in range(frames):
                frame = rng.integers(90, 100, (60, 90)).astype(np.uint8)
                frame[20:32, 5 * number : 5 * number + 8] = 200
                mask = np.zeros((60, 90), np.bool_)
                if part == "Test" and number >= frames // 2:
                    frame[35:58, 60 - 5 * number : 90 - 5 * number : 2] = 255
                    mask[35:58, 60 - 5 * number : 90 - 5 * number] = True
                name = f"{number + 1:03d}.tif" if official else f"{number:03d}.jpg"
                Image.fromarray(frame).save(into / name)
                if part == "Test" and masks:
                    folder_of_masks = into.with_name(f"{into.name}_gt")
                    folder_of_masks.mkdir(exist_ok=True)
                    Image.fromarray(mask).save(folder_of_masks / f"{number + 1:03d}.bmp")
            if official:
                (into / "._001.tif").write_bytes(b"resource fork")
    first, last = frames // 2 + 1, frames
    if official:
        lines = [
            "TestVideoFile = {};",
            *(f"TestVideoFile{{end+1}}.gt_frame = [{first}:{last}];" for _ in range(clips[1])),
        ]
        (folder / "Test" / "UCSDped2.m").write_text("\n".join(lines) + "\n")
    else:
        cells = np.empty((1, clips[1]), dtype=object)
        for clip in range(clips[1]):
            cells[0, clip] = np.array([[first], [last]], np.uint8)
        savemat(folder / "ped2.mat", {"gt": cells})
    return folder


def write_faces(
    root: Path, videos: int = 6, images: int = 4, *, devel: Iterable[str] = ("replay",)
) -> Path:
    """Write two sets of drawn faces, casia and replay, each with so many genuine videos and attacks
    a part; return the root.

    <root>/<set>/{train,devel,test}/{real,attack/print}/<video>/<image>.png, grey, 24 pixels a side.
    A face is a disc that sways; a print of it shows stripes. Each set has a brightness of its own.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24] - 11.5
    for name, light in (("casia", 150), ("replay", 170)):
        for part in ("train", "devel", "test") if name in devel else ("train", "test"):
            for video, kind in itertools.product(range(videos), ("real", "attack/print")):
                where = root / name / part / kind / f"v{video}"
                where.mkdir(parents=True)
                for image in range(images):
                    away = np.hypot(x - np.sin(video + image), y - rng.normal(0, 0.5))
                    face = light * (away < 8) + rng.normal(0, 4, (24, 24)) + 40
                    stripes = 30 * (x.astype(int) % 3 == 0) if kind != "real" else 0
                    pixels = np.clip(face - stripes, 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(where / f"{image:03d}.png")
    return root


def write_dcase(
    root: Path,
    scenes: tuple[str, ...] = ("beach", "park"),
    mixtures: int = 2,
    seconds: float = 2.5,
    *,
    rate: int = 44_100,
    channels: int = 1,
) -> dict[str, Path]:
    """Write TUT Rare Sound Events 2017 with so many mixtures of each scene, kind of event and part.

    Return the parts' folders.

    24-bit wav files of noise; every other mixture has a louder tone for about half a second, a
    little after 0.9 s.
    """
    import soundfile
    import yaml

    tags = {
        "devtrain": "20b255387a2d0cddc0a3dff5014875e7",
        "evaltest": "bbb81504db15a03680a0044474633b67",
    }
    folders = {}
    for part, kind in itertools.product(
        ("devtrain", "devtest", "evaltest"), ("babycry", "glassbreak", "gunshot")
    ):
        archive = (
            f"TUT-rare-sound-events-2017-{'evaluation' if part == 'evaltest' else 'development'}"
        )
        folder = root / archive / "data" / "mixture_data" / part / tags.get(part, tags["devtrain"])
        folders[part] = folder
        recipes = []
        for number, (scene, i) in enumerate(itertools.product(scenes, range(mixtures))):
            key = hashlib.md5(f"{part} {kind} {number}".encode())
            name = f"mixture_{part}_{kind}_{number:03d}_{key.hexdigest()}.wav"
            recipe: dict[str, object] = {
                "bg_classname": scene,
                "bg_path": f"audio/{part}_{kind}_{number}.wav",
                "ebr": 6.0 if i % 2 else float("-inf"),
                "event_present": bool(i % 2),
                "mixture_audio_filename": name,
                "annotation_string": name,
            }
            rng = np.random.default_rng(list(key.digest()))
            onset, length = 0.9 + 0.01 * number, 0.5 + 0.1 * rng.random()
            samples = round(seconds * rate)
            sound = rng.normal(0, 0.03, (samples, channels))
            if i % 2:
                recipe |= {
                    "event_class": kind,
                    "event_start_in_mixture_seconds": onset,
                    "event_length_seconds": length,
                }
                recipe["annotation_string"] = f"{name}\t{onset:.6f}\t{onset + length:.6f}\t{kind}"
                time = np.arange(samples) / rate
                inside = (time >= onset) & (time < onset + length)
                sound += (0.3 * inside * np.sin(2 * np.pi * 1000 * time))[:, None]
            (folder / "audio").mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "audio" / name, np.clip(sound, -1, 1), rate, subtype="PCM_24")
            recipes.append(recipe)
        meta = folder / "meta"
        meta.mkdir(exist_ok=True)
        lines = "".join(f"{recipe['annotation_string']}\n" for recipe in recipes)
        (meta / f"event_list_{part}_{kind}.csv").write_text(lines)
        (meta / f"mixture_recipes_{part}_{kind}.yaml").write_text(yaml.safe_dump(recipes))
    return folders


def write_images(
    root: Path,
    counts: dict[str, int],
    *,
    side: int = 16,
    channels: int = 1,
    suffix: str = ".png",
    seed: int = 0,
) -> Path:
    """Write `<root>/<folder>/0000.png`, ... for each folder ("" for the root) and how many; return
    the root.

    Folders called good show a disc at the centre, each other a bar of its own direction; sizes
    differ from image to image.
    """
    rng = np.random.default_rng(seed)
    for number, (folder, count) in enumerate(counts.items()):
        where = root / folder
        where.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            size = side + int(rng.integers(0, 3)) * 4
            y, x = (np.mgrid[:size, :size] - (size - 1) / 2) / (size / 2)
            turn = 0.7 * number
            good = where.name in ("good", root.name)
            shape = (
                x**2 + y**2 < 0.3 if good else np.abs(x * np.cos(turn) + y * np.sin(turn)) < 0.25
            )
            pixels = np.clip(40 + 150 * shape + rng.normal(0, 12, (size, size)), 0, 255).astype(
                np.uint8
            )
            stacked = np.repeat(pixels[..., None], channels, 2).squeeze()
            Image.fromarray(stacked).save(where / f"{index:04d}{suffix}")
    return root


def write_masks(root: Path) -> None:
    """Write `<root>/ground_truth/<kind>/<name>_mask.png` of the bars that `write_images` draws."""
    for path in sorted(root.glob("test/*/*.png")):
        if path.parent.name != "good":
            bright = np.asarray(Image.open(path).convert("L")) > 115
            where = root / "ground_truth" / path.parent.name
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * bright).astype(np.uint8)).save(where / f"{path.stem}_mask.png")


def write_every_set(root: Path) -> Path:
    """Write a little of every published set, in true formats; DCASE's where soundfile is there."""
    write_mnist(root)
    write_mnist(root, name="FashionMNIST")
    write_cifar10(root)
    write_coil(root, objects={COIL_SEEDED[0] + 1, 1, 2, 3})
    write_coil(root, "coil-20-proc", objects=range(1, 6), channels=1)
    write_ucsd(root)
    if find_spec("soundfile"):
        write_dcase(root)
    write_faces(root)
    return root
