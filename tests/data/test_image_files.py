"""Image files: what is decoded from them, once, and how much memory that takes."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data import layouts
from uncertainty_est.data.sources import image_files
from uncertainty_est.data.sources.image_files import ImageFiles, read_image
from uncertainty_est.data.sources.image_folder import ImageFolder
from uncertainty_est.data.sources.shapes import fit_images, to_nchw
from uncertainty_est.errors import ConfigError, DataError


def picture(path: Path, height: int, width: int, mode: str = "RGB", seed: int = 0) -> np.ndarray:
    """A smooth picture: a resize rounds in its own way, which would show in noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    image.save(path)
    return np.array(image)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 40), (3, 90, 61), (1, 61, 90)])
def test_a_file_becomes_what_fit_images_makes_of_its_pixels(mode: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 61, 90, mode)
    expected = fit_images(to_nchw(pixels[None]), shape, "a")[0].int()
    found = torch.from_numpy(read_image(tmp_path / "a.png", shape).copy()).int()
    assert found.shape == shape and (found - expected).abs().max() <= 1


def test_pixels_of_the_right_size_are_kept(tmp_path: Path) -> None:
    pixels = layouts.images(1, 32, 32, 3)[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", (3, 32, 32)), pixels.transpose(2, 0, 1))


def test_a_crop_is_the_centre_of_a_larger_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 512, 300)
    with Image.open(tmp_path / "a.png") as image:
        whole = np.asarray(image.resize((256, 437), Image.Resampling.BILINEAR))
    crop = read_image(tmp_path / "a.png", (3, 224, 224), crop=0.875)
    assert np.array_equal(crop, whole[106:330, 16:240].transpose(2, 0, 1))
    for wrong in (0, 1.01):
        with pytest.raises(ValueError, match=rf"crop must lie in \(0, 1\], got {wrong}"):
            ImageFolder(name="a", root=str(tmp_path), shape=(3, 64, 64), crop=wrong)


@pytest.mark.parametrize(
    ("mode", "level", "grey"),
    [("1", 1, 255), ("L", 7, 7), ("P", 9, None), ("RGBA", (8, 8, 8, 0), 8), ("LA", (6, 0), 6), ("I;16", 40_000, 156)],
)
def test_every_mode_of_png(mode: str, level: object, grey: int | None, tmp_path: Path) -> None:
    image = Image.new(mode, (8, 8), level)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette([0] * 27 + [10, 20, 30])
    image.save(tmp_path / "a.png")
    colour = read_image(tmp_path / "a.png", (3, 8, 8))[:, 0, 0].tolist()
    assert colour == ([10, 20, 30] if grey is None else [grey] * 3)


def folder_of(root: Path, write: bool = True) -> ImageFolder:
    for number in range(30 if write else 0):
        layouts.write_image(root / "set" / f"{number % 3}" / f"{number:02}.png", number)
    return ImageFolder(name="some", root=str(root), folders=["set"], shape=(3, 8, 8), val_fraction=0.2)


def test_each_split_decodes_its_own_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of(tmp_path)
    read: list[str] = []

    def spy(path: Path, *rest: object) -> np.ndarray:
        read.append(path.name)
        return read_image(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(image_files, "read_image", spy)
    splits = {}
    for name in ("val", "test", "train"):
        splits[name] = source.split(name)  # type: ignore[arg-type]
        numbers = [int(file.removesuffix(".png")) for file in read]
        assert splits[name].x[:, 0, 0, 0].tolist() == numbers and len(numbers) == len(splits[name]) > 0
        assert splits[name].y.tolist() == [number % 3 for number in numbers]
        read.clear()
    assert sum(map(len, splits.values())) == 30
    assert torch.equal(folder_of(tmp_path, write=False).split("val").x, splits["val"].x) and not read
    assert torch.equal(folder_of(tmp_path / "elsewhere").split("val").x, splits["val"].x) and read


@pytest.mark.parametrize("what", ["mtime", "size", "name", "shape", "crop"])
def test_what_the_array_depends_on(what: str, tmp_path: Path) -> None:
    layouts.write_image(tmp_path / "a.png", 10)
    files, shape, crop = ImageFiles(tmp_path, ["a.png"]), (3, 8, 8), 1.0
    cache = tmp_path / "cache"
    files.decode(shape, cache, "some")
    if what == "mtime":
        layouts.write_image(tmp_path / "a.png", 20)
        os.utime(tmp_path / "a.png", ns=(1, 1))
    elif what == "size":
        stat = (tmp_path / "a.png").stat()
        layouts.write_image(tmp_path / "a.png", 20, (90, 90))
        os.utime(tmp_path / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif what == "name":
        (tmp_path / "a.png").rename(tmp_path / "b.png")
        files = ImageFiles(tmp_path, ["b.png"])
    elif what == "shape":
        shape = (1, 8, 8)
    else:
        crop = 0.5
    x = files.decode(shape, cache, "some", crop)
    assert len(list(cache.glob("some-*.npy"))) == 2
    assert x.unique().tolist() == [20 if what in ("mtime", "size") else 10]


def test_the_array_is_mapped_for_reading(tmp_path: Path) -> None:
    x = folder_of(tmp_path).split("test").x
    assert x.dtype == torch.uint8 and x.is_contiguous()
    (path,) = (tmp_path / ".decoded").glob("*.npy")
    assert np.array_equal(np.load(path), x) and not list((tmp_path / ".decoded").glob(".*.npy"))
    assert x[torch.tensor([1, 0])].add_(1).is_contiguous(), "rows are copies"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: is damaged \(.*\); delete it, it is made again"):
        folder_of(tmp_path, write=False).split("test")


@pytest.mark.parametrize("content", [b"", b"no picture", None, "cut"])
def test_a_damaged_file_is_named_and_leaves_nothing_behind(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "set" / "1" / "04.png"
    source = folder_of(tmp_path)
    source.prepare()
    source.listing("all")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-30] if content == "cut" else content)  # type: ignore[arg-type]
    with pytest.raises(DataError) as error:
        for name in ("train", "val", "test"):
            source.split(name)  # type: ignore[arg-type]
    text = str(error.value)
    assert text.startswith(f"{path}: cannot be read as an image (") and "put a sound copy there" in text
    assert "\n" not in text
    decoded = tmp_path / ".decoded"
    assert all(np.load(file).ndim == 4 for file in decoded.glob(".*.npy")) and not list(decoded.glob(".*.npy"))


def test_a_disk_that_is_full_is_one_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    source = folder_of(tmp_path)
    source.listing("all")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            DataError, match=r"decoded: 6 decoded images of shape \(3, 8, 8\) cannot be written \(.*\); free"
        ):
            source.split("test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / ".decoded").glob("*.npy"))


def test_several_processes_decode_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for the processes: they lock the file by handles of their own as well."""
    source = folder_of(tmp_path)
    files, _ = source.listing("all")
    begun, read = threading.Barrier(2, timeout=30), []

    def slow(path: Path, *rest: object) -> np.ndarray:
        read.append(path.name)
        time.sleep(0.01)
        return read_image(path, *rest)  # type: ignore[arg-type]

    def decode(_: int) -> torch.Tensor:
        begun.wait()
        return files.decode((3, 8, 8), tmp_path / "cache", "some")

    monkeypatch.setattr(image_files, "read_image", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(decode, range(2))
    assert torch.equal(first, second) and sorted(read) == sorted(name.split("/")[1] for name in files.names)


def test_the_arrays_may_lie_elsewhere(tmp_path: Path) -> None:
    folder_of(tmp_path)
    x = ImageFolder(name="some", root=str(tmp_path), folders=["set"], shape=(3, 8, 8), cache=str(tmp_path / "fast"))
    assert len(x.split("test")) == 6
    assert list((tmp_path / "fast").glob("some-*.npy")) and not (tmp_path / ".decoded").exists()
    (tmp_path / "file").touch()
    wrong = ImageFolder(name="some", root=str(tmp_path), folders=["set"], shape=(3, 8, 8), cache=str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"fixed\.sources\.some\.cache: cannot write to .*; choose another folder"):
        wrong.split("test")


def peak_growth(work: object) -> int:
    """Bytes that the process had at most, during a call, beyond what it had before."""

    def status(key: str) -> int:
        (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key)]
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
    before = status("VmRSS:")
    kept = work()  # type: ignore[operator]
    assert kept is not None
    return status("VmHWM:") - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' account of the process's memory")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    layouts.write_image(tmp_path / "first.png", 3, (128, 128))
    (tmp_path / "set").mkdir()
    for number in range(2000):
        os.link(tmp_path / "first.png", tmp_path / "set" / f"{number}.png")

    def source(n: int) -> ImageFolder:
        return ImageFolder(
            name="some",
            root=str(tmp_path),
            folders=["set"],
            shape=(3, 128, 128),
            val_fraction=0,
            test_fraction=n / 2000,
        )

    size = 2000 * 3 * 128 * 128  # 98 MB
    source(100).split("test")  # what Pillow and the threads need once
    assert peak_growth(lambda: source(2000).split("test")) < 0.15 * size
    assert peak_growth(lambda: source(2000).split("test").x.clone()) > 0.9 * size, "a copy would have been seen"
