"""Every data set has a card, cards are checked when they are read, and the pages in docs/ are what the cards say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torchvision
import yaml

from tests.conftest import CONFIGS, OWN_SOURCES, ROOT
from tests.data.test_configs import build
from uncertainty_est.data.card import FOLDER, Card, card_names, read_card
from uncertainty_est.data.card_pages import index, page
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.published import TorchvisionImages
from uncertainty_est.errors import DataError

NAMES = card_names()
CARDS = {name: read_card(name) for name in NAMES}
SOURCES = sorted(path.stem for path in (CONFIGS / "source").glob("*.yaml"))
SMALL = {"title": "T", "about": "A.", "obtained": "by hand", "items": {"all": 3}, "shape": [2], "classes": 2}


def test_every_data_set_has_a_card_and_every_card_a_data_set() -> None:
    assert NAMES == SOURCES and len(NAMES) >= 50
    assert sorted(name for name, card in CARDS.items() if card.obtained == "own") == OWN_SOURCES


@pytest.mark.parametrize("name", NAMES)
def test_its_page_is_what_the_card_says(name: str) -> None:
    """If not: python -m uncertainty_est.data.check --write-docs docs/data."""
    assert (ROOT / "docs" / "data" / f"{name}.md").read_text() == page(CARDS[name])


def test_the_index_is_what_the_cards_say() -> None:
    folder = ROOT / "docs" / "data"
    assert (folder / "README.md").read_text() == index(list(CARDS.values()))
    assert sorted(path.stem for path in folder.glob("*.md") if path.stem != "README") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_card_agrees_with_its_configuration(name: str) -> None:
    node = yaml.safe_load((CONFIGS / "source" / f"{name}.yaml").read_text())
    card = CARDS[name]
    assert (card.obtained == "torchvision") == node["_target_"].endswith(".TorchvisionImages")
    if card.obtained == "by hand":
        assert card.how and card.layouts
    for layout in card.layouts:
        assert any(file.needed for file in layout.files)
        for file in layout.files:
            assert not Path(file.path).is_absolute() and ".." not in file.path
            assert file.md5 is None or (len(file.md5) == 32 and int(file.md5, 16) >= 0)
    if "page" in node:  # what messages name
        assert card.homepage == node["page"]
    for folder in node.get("folders", []) if name not in OWN_SOURCES else []:
        paths = [file.path for layout in card.layouts for file in layout.files]
        assert any(path.startswith(folder.split("/test")[0]) for path in paths), folder


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.obtained == "torchvision"])
def test_what_torchvision_needs_is_on_the_card(name: str) -> None:
    node = yaml.safe_load((CONFIGS / "source" / f"{name}.yaml").read_text())
    source = TorchvisionImages(node["dataset"], "root", shape=[1, 8, 8])
    paths = [file.path for file in CARDS[name].layouts[0].files if file.needed]
    for files in source._published.files.values():
        for file in files:
            assert any(path == file or path.startswith(f"{file}/") for path in paths), file
    assert source._published.pack == name


def test_checksums_are_torchvisions() -> None:
    sums = {file.path: file.md5 for card in CARDS.values() for layout in card.layouts for file in layout.files}
    tv = torchvision.datasets
    for dataset in (tv.MNIST, tv.FashionMNIST, tv.KMNIST):
        for file, md5 in dataset.resources:
            assert sums[f"{dataset.__name__}/raw/{file}"] == md5
    for cifar in (tv.CIFAR10, tv.CIFAR100):
        for file, md5 in [*cifar.train_list, *cifar.test_list, [cifar.meta["filename"], cifar.meta["md5"]]]:
            assert sums[f"{cifar.base_folder}/{file}"] == md5
        assert sums[cifar.filename] == cifar.tgz_md5
    for part in ("train", "test"):
        assert sums[f"{part}_32x32.mat"] == tv.SVHN.split_list[part][2]
        _, file, md5 = tv.USPS.split_list[part]
        assert sums[file] == md5
    for file, md5 in tv.Omniglot.zips_md5.items():
        assert sums[f"omniglot-py/{file}.zip"] == md5
    assert sums["EMNIST/raw/gzip.zip"] == tv.EMNIST.md5
    assert sums["dtd/dtd-r1.0.1.tar.gz"] == tv.DTD._MD5
    assert {md5: file for _, md5, file in tv.CelebA.file_list}[
        sums["celeba/img_align_celeba.zip"]
    ] == "img_align_celeba.zip"
    assert tv.Places365._IMAGES_META[("val", True)] == ("val_256.tar", sums["val_256.tar"])


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.obtained in ("bundled", "generated")])
def test_numbers_and_shapes_are_those_of_what_is_here(name: str, tmp_path: Path) -> None:
    card = CARDS[name]
    source = build(CONFIGS / "source" / f"{name}.yaml", tmp_path)
    held_out = "for validation" in card.about  # of which there is no training split
    whole = [source.split(part) for part in SPLIT_NAMES if part != "train" or not held_out]
    if name != "photo_patches":  # where a tile is as large as it is asked for
        assert sum(len(split) for split in whole) == card.total
    labels = np.unique(np.concatenate([split.y.numpy() for split in whole]))
    assert len(labels[labels >= 0]) == card.classes
    if isinstance(card.shape, list):
        assert list(source.shape) == card.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "MIT"}, "a Card has no key 'licens'; did you mean 'licence'?"),
        ({"title": None}, "'title' must be str, got None"),
        ({"classes": "ten"}, "'classes' must be int, got 'ten'"),
        ({"classes": True}, "'classes' must be int, got True"),
        ({"obtained": "somehow"}, "obtained must be one of bundled, generated, .* got 'somehow'"),
        ({"items": {"training": 3}}, "items must be of train, val, test, all, got 'training'"),
        ({"layouts": [{"files": [{"pth": "a"}]}]}, "a CardFile has no key 'pth'; did you mean 'path'?"),
        ({"layouts": [{"files": [{"md5": "a"}]}]}, "the CardFile needs the key 'path'"),
        ({"layouts": ["a"]}, "a Layout must hold keys and values, got 'a'"),
        ({"like": "nothing"}, "nothing.yaml: cannot be read as YAML"),
    ],
)
def test_what_is_wrong_with_a_card_is_told(change: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SMALL))
    assert read_card("mine", tmp_path) == Card(name="mine", **SMALL)  # type: ignore[arg-type]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SMALL | change))
    with pytest.raises(DataError, match=message) as error:
        read_card("mine", tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_card_without_a_key_or_without_any(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("title: T\n")
    with pytest.raises(DataError, match="the Card needs the key 'about'"):
        read_card("mine", tmp_path)
    (tmp_path / "mine.yaml").write_text("- T\n")
    with pytest.raises(DataError, match="must hold keys and values"):
        read_card("mine", tmp_path)


def test_a_card_takes_from_another_what_it_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "mine.yaml").write_text("like: base\ntitle: M\nitems: {all: 1}\n")
    mine, base = read_card("mine", tmp_path), read_card("base", tmp_path)
    assert (mine.name, mine.title, mine.total) == ("mine", "M", 1)
    differing = {f.name for f in fields(Card) if getattr(mine, f.name) != getattr(base, f.name)}
    assert differing == {"name", "title", "items"}


def test_cards_are_installed_with_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '"uncertainty_est.data" = ["cards/*.yaml"]' in text and FOLDER == ROOT / "uncertainty_est" / "data" / "cards"
