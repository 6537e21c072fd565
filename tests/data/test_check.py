"""``python -m uncertainty_est.data.check``: what is here, what is not, and what one's own data are."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_iris

from tests.conftest import ROOT, compose_points, real_data
from tests.data.layouts import images, labels, write_own, write_pack, write_svhn
from uncertainty_est.building import build_data
from uncertainty_est.data import check
from uncertainty_est.data.card import Card, CardFile, Layout, card_names, read_card
from uncertainty_est.data.own import describe
from uncertainty_est.data.presence import look
from uncertainty_est.data.sources.published import TorchvisionImages
from uncertainty_est.errors import ConfigError, DataError

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """Runs the command on a data root of its own: exit code, and lines."""
    logger = logging.getLogger("uncertainty_est")
    before = list(logger.handlers), logger.level, logger.propagate

    def call(*words: Any, root: Path | None = tmp_path) -> tuple[int, list[str]]:
        code = check.main([*map(str, words), *(["--data-root", str(root)] if root else [])])
        return code, capsys.readouterr().out.splitlines()

    yield call
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def card(*files: CardFile, name: str = "mine", obtained: str = "by hand") -> Card:
    layouts = [Layout(files=files)]
    return Card(
        name=name, title="", about="", obtained=obtained, items={}, shape=[2], classes=2, layouts=layouts, how="Get it."
    )


def write_files(folder: Path, **content: bytes) -> None:
    for name, data in content.items():
        (folder / name).write_bytes(data)


def test_states_of_files(tmp_path: Path) -> None:
    md5 = hashlib.md5(b"bbbb").hexdigest()
    mine = card(CardFile(path="a", bytes=3), CardFile(path="b", md5=md5), CardFile(path="z", needed=False, md5=md5))
    assert (look(mine, tmp_path).state, look(mine, tmp_path).found) == ("missing", "nothing")
    write_files(tmp_path, a=b"aaa")
    assert (look(mine, tmp_path).state, look(mine, tmp_path).found) == ("incomplete", "1 of 2 files")
    assert look(mine, tmp_path).problems == [f"{tmp_path / 'b'}: is not there"]
    write_files(tmp_path, b=b"bbbb")
    assert look(mine, tmp_path).state == "present" and not look(mine, tmp_path).problems
    assert look(mine, tmp_path, md5=True).found == "2 of 2 files, 1 checksums agree"
    write_files(tmp_path, b=b"bbbc")
    assert look(mine, tmp_path).state == "present"
    damaged = look(mine, tmp_path, md5=True)
    assert damaged.state == "damaged"
    assert f"has the MD5 {hashlib.md5(b'bbbc').hexdigest()}, published is {md5}" in damaged.problems[0]
    write_files(tmp_path, b=b"bbbb", z=b"other")
    assert look(mine, tmp_path).state == "present" and look(mine, tmp_path, md5=True).state == "damaged"
    for short in (b"aa", b"aaaa", b""):
        write_files(tmp_path, a=short)
        assert look(mine, tmp_path).state == "damaged"
        assert f"has {len(short)} of 3 bytes; remove it and get it again" in look(mine, tmp_path).problems[0]


def test_states_of_folders_and_archives(tmp_path: Path) -> None:
    mine = card(CardFile(path="images", items=3), CardFile(path="images.zip", needed=False))
    write_files(tmp_path, **{"images.zip": b"z"})
    assert look(mine, tmp_path).state == "missing"
    assert "images.zip: is there and not unpacked" in look(mine, tmp_path).problems[-1]
    folder = tmp_path / "images" / "inner"
    folder.mkdir(parents=True)
    write_files(folder, **{"a.png": b"1", "b.JPEG": b"1", ".c.png": b"1", "list.txt": b"1"})
    found = look(mine, tmp_path)
    assert (found.state, found.found) == ("incomplete", "2 items") and "holds 2 of 3 items" in found.problems[0]
    write_files(folder, **{"d.npy": b"1"})
    assert (look(mine, tmp_path).state, look(mine, tmp_path).found) == ("present", "3 items")


def test_one_of_several_layouts_is_enough(tmp_path: Path) -> None:
    segment = read_card("segment")
    (tmp_path / "segment").mkdir()
    write_files(tmp_path / "segment", **{"segmentation.data": b"1", "segment-challenge.arff": b"1"})
    assert look(segment, tmp_path).state == "incomplete"
    write_files(tmp_path / "segment", **{"segment-test.arff": b"1"})
    assert look(segment, tmp_path).state == "present"


def test_a_pack_is_read_in_place_of_published_files(tmp_path: Path) -> None:
    svhn = read_card("svhn")
    assert look(svhn, tmp_path).state == "missing"
    write_pack(tmp_path / "svhn.npz")
    assert look(svhn, tmp_path).state == "present"
    content = (tmp_path / "svhn.npz").read_bytes()
    (tmp_path / "svhn.npz").write_bytes(content[: len(content) // 2])
    assert look(svhn, tmp_path).state == "damaged"
    (tmp_path / "svhn.npz").unlink()
    write_svhn(tmp_path)  # a few images in the official layout are not the published files
    assert look(svhn, tmp_path).state == "damaged"


def test_every_set_is_listed_and_the_named_decide_the_exit_code(run: Run) -> None:
    code, lines = run()
    own = {name for name in card_names() if read_card(name).obtained == "own"}
    assert code == 0 and [line.split()[0] for line in lines[:-1]] == [n for n in card_names() if n not in own]
    assert lines[-1].split(" in ")[0].split(", ")[0].endswith(" present")
    states = [line[len(max(card_names(), key=len)) :].split()[0] for line in lines[:-1]]
    assert set(states) == {"present", "missing"}
    code, lines = run("digits", "two_moons")
    assert code == 0 and len(lines) == 3
    code, lines = run("digits", "isun", "svhn")
    assert code == 1
    assert any("iSUN: is not there" in line for line in lines)
    assert any("Get iSUN.tar.gz by the link on the page" in line and "facebookresearch/odin" in line for line in lines)
    assert any("data.check svhn --download" in line for line in lines)


def test_in_json(run: Run, tmp_path: Path) -> None:
    write_files(tmp_path, **{"usps.bz2": b"1"})
    code, lines = run("usps", "digits", "--json")
    usps, digits = json.loads("\n".join(lines))
    assert code == 1 and usps["state"] == "incomplete" and digits["state"] == "present"
    assert usps["problems"] == [f"{tmp_path / 'usps.t.bz2'}: is not there"]


def test_downloading_is_the_sources(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"USPS: its .* part can neither be read .* nor downloaded"):
        run("usps", "--download")

    def prepare(self: TorchvisionImages) -> None:
        write_files(Path(self.root), **{"usps.bz2": b"1", "usps.t.bz2": b"1"})

    monkeypatch.setattr(TorchvisionImages, "prepare", prepare)
    code, lines = run("usps", "--download")
    assert code == 0 and lines[-2].split()[:2] == ["usps", "present"]
    assert run("isun", "--download")[0] == 1  # nothing that could download it


def test_wrong_names_and_folders(run: Run, tmp_path: Path) -> None:
    for words, message in [
        (["svnh"], "there is no data set 'svnh'; did you mean 'svhn'?"),
        (["folder"], "'folder' stands for your own data; look into them with --path"),
        (["--download"], "--download: name the data sets"),
        (["--ignore", "id"], "--target and --ignore: say of which table, by --path"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run(*words)
    (tmp_path / "mine").mkdir()
    with pytest.raises(
        ConfigError, match=f"'mine' stands for your own data; look into them with --path {tmp_path}/mine"
    ):
        run("mine")
    with pytest.raises(ConfigError, match="--data-root: there is no folder"):
        run(root=tmp_path / "nowhere")


def test_the_data_root_is_that_of_a_composition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert check.data_root(None) == tmp_path == Path(compose_points()[0]["data_root"])
    monkeypatch.delenv("DATA_ROOT")
    assert check.data_root(None).resolve() == Path(compose_points()[0]["data_root"])


def test_looking_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = "import sys; from uncertainty_est.data.check import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "mnist", "--data-root", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_real_data(run: Run) -> None:
    code, lines = run("mnist", "fashionmnist", "segment", "gaussian2d_file", root=real_data())
    assert code == 0, lines
    assert run("kmnist", root=real_data())[0] == 1  # whose training files hold nothing there


# ------------------------------------------------------------------------------------------------------- one's own


@pytest.mark.parametrize("kind", ["folder", "npz", "table"])
def test_the_command_that_is_told_composes_and_its_data_load(kind: str, run: Run, tmp_path: Path) -> None:
    write_own(tmp_path)
    path = tmp_path / {"folder": "own/images", "npz": "own/pack.npz", "table": "own/table.csv"}[kind]
    code, lines = run("--path", path, root=None)
    assert code == 0 and lines[0] == f"{path}: {kind}"
    words = lines[-1].split()
    assert words[:2] == ["python", "train_local.py"]
    (fixed,) = compose_points(*words[2:], f"fixed.data_root={tmp_path}")
    data = build_data(fixed)
    data.prepare_data()
    data.setup()
    assert data.class_counts.min() > 0 and tuple(fixed["data_shape"]) == data.data_shape


def test_options_of_tables_are_in_the_command_and_quoted(run: Run, tmp_path: Path) -> None:
    frame = load_iris(as_frame=True).frame.rename(columns={"target": "the species (3)"}).assign(no=1)
    path = tmp_path / "my data" / "iris.csv"
    path.parent.mkdir()
    frame.to_csv(path, index=False)
    _, lines = run("--path", path, "--target", "the species (3)", "--ignore", "no", root=None)
    assert "150 rows" in lines[1] and "4 features: sepal length (cm)" in lines[2] and "3 classes: 0, 1, 2" in lines[3]
    words = shlex.split(lines[-1])
    (fixed,) = compose_points(*words[2:])
    node = fixed["sources"]["table"]
    assert (node["path"], node["target"], node["ignore"]) == (str(path.resolve()), "the species (3)", ["no"])
    data = build_data(fixed)
    data.setup()
    assert data.num_classes == 3 and data.data_shape == (4,)


def save(path: Path, *shape: int, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images(1, *shape)[0]).convert(mode).save(path)


def test_shapes_of_images(tmp_path: Path) -> None:
    save(tmp_path / "grey/a/1.png", 28, 28)
    save(tmp_path / "grey/b/1.png", 28, 28)
    assert (describe(tmp_path / "grey").data_shape, describe(tmp_path / "grey").num_classes) == ([1, 28, 28], 2)
    save(tmp_path / "grey/b/2.png", 28, 28, mode="RGB")
    assert describe(tmp_path / "grey").data_shape == [3, 28, 28]
    save(tmp_path / "grey/b/3.png", 20, 28)
    assert describe(tmp_path / "grey").data_shape == [3, 32, 32]
    assert "28x28 (3 of the first 4)" in describe(tmp_path / "grey").facts[1]
    for part, n in (("train", 3), ("test", 2)):
        for number in range(n):
            save(tmp_path / "parts" / part / "a" / f"{number}.jpg", 64, 64, 3)
    own = describe(tmp_path / "parts")
    assert own.facts[0] == "3 images to train, 2 images to test" and own.data_shape == [3, 32, 32]
    (tmp_path / "grey/a/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a/0\.png: cannot be read as an image"):
        describe(tmp_path / "grey")


def test_without_classes_it_is_an_ood_set(tmp_path: Path) -> None:
    save(tmp_path / "plain/1.png", 8, 8)
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    frame.to_csv(tmp_path / "plain.csv", index=False)
    np.savez(tmp_path / "test.npz", x_test=images(3, 8, 8))
    for path, name in [("plain", "plain"), ("plain.csv", "plain"), ("test.npz", "test")]:
        own = describe(tmp_path / path)
        assert own.num_classes == 0
        assert own.command(tmp_path / path) == (
            f"an OOD set beside another: fixed.test_ood_datasets=[{name}] fixed.data_root={tmp_path}"
        )
    np.savez(tmp_path / "table.npz", x_train=np.eye(3), y_train=labels(3, 3), x_test=np.eye(3), y_test=labels(3, 3))
    assert (describe(tmp_path / "table.npz").kind, describe(tmp_path / "table.npz").data_shape) == ("npz_table", [3])
