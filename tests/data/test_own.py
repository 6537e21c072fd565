"""Data of one's own by configuration alone: tables, folders and packs, and one sentence for what is wrong with them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_iris

import evaluate as evaluate_script
from tests.conftest import ROOT, compose_points, dataset_names
from tests.data.layouts import write_pack
from uncertainty_est.building import build_data, build_method
from uncertainty_est.data import check
from uncertainty_est.data.own import describe
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.own_table import OwnTable
from uncertainty_est.data_names import find_source
from uncertainty_est.errors import ConfigError, DataError
from uncertainty_est.launch import run_points
from uncertainty_est.own_data import files_below, kind_of

SOURCES = ROOT / "configs" / "source"
FLOWERS = ["setosa", "versicolor", "virginica"]


def iris() -> pd.DataFrame:
    """150 flowers: four features and the name of the species."""
    frame = load_iris(as_frame=True).frame
    return frame.assign(target=np.array(FLOWERS)[frame["target"]])


def write(path: Path, frame: pd.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path, index=False)
    return path


def table(path: Path, columns: int = 4, **options: Any) -> OwnTable:
    return OwnTable(path=str(path), shape=[columns], **options)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_what_scikit_learn_has(suffix: str, tmp_path: Path) -> None:
    source = table(write(tmp_path / f"iris{suffix}", iris()), test_fraction=0.3)
    source.prepare()
    splits = [source.split(name) for name in SPLIT_NAMES]
    assert [len(split) for split in splits] == [90, 15, 45]
    bunch = load_iris()
    for split in splits:
        assert split.x.dtype == torch.float32 and split.y.dtype == torch.int64
        assert np.array_equal(split.x, bunch.data[split.indices].astype(np.float32))
        assert np.array_equal(split.y, bunch.target[split.indices])
    assert source.columns == bunch.feature_names and source.classes_by_number == FLOWERS


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 10, 2], ["2", "9", "10"]),
        ([1.0, 3.0, 1.0, 2.0], ["1", "2", "3"]),
        (["10", "9", "a", "9"], ["10", "9", "a"]),
        (["None", "NA", "b", " b"], ["NA", "None", "b"]),
        (["1_0", "10", "1_0", "9"], ["10", "1_0", "9"]),  # Python would read the first as 10
        ([9007199254740993, 9007199254740992, 5, 5], ["5", "9007199254740992", "9007199254740993"]),  # one as floats
        ([True, False, True, True], ["False", "True"]),
    ],
)
def test_classes_are_numbered_in_sorted_order(labels: list[Any], names: list[str], tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": range(4), "Class": labels})
    for suffix in (".csv", ".parquet"):
        source = table(write(tmp_path / f"t{suffix}", frame), 1, val_fraction=0.25, test_fraction=0.25)
        x, y = source.load("all")
        assert source.classes_by_number == names
        text = [str(int(v)) if isinstance(v, float) else str(v).strip() for v in labels]
        assert [names[label] for label in y] == text and x[:, 0].tolist() == [0, 1, 2, 3]


def test_the_column_of_classes_and_columns_left_out(tmp_path: Path) -> None:
    frame = iris().rename(columns={"target": "species"}).assign(id=range(150), label="?")
    path = write(tmp_path / "iris.csv", frame)
    source = table(path, target="species", ignore=["id", "label"])
    assert np.array_equal(source.load("all")[0], load_iris().data.astype(np.float32))
    assert np.array_equal(source.load("all")[1], load_iris().target)
    for options, message in [
        ({"target": "specis"}, r"no column 'specis' \(target\); it has sepal length"),
        ({"ignore": ["nr"]}, r"no column 'nr' \(ignore\)"),
        ({"ignore": ["id"], "target": "label"}, "'species' has 'setosa', which is no finite number, in row 1 below"),
        (
            {"target": "petal width (cm)", "ignore": ["species", "label"]},
            "numbers with fractions, which are no classes",
        ),
    ]:
        with pytest.raises(DataError, match=message) as error:
            table(path, **options).load("all")
        assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_truth_values_are_numbers(suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"on": [True, False, True], "n": [1, 2, 3], "label": list("xyx")})
    x, _ = table(write(tmp_path / f"t{suffix}", frame), 2).load("all")
    assert x.tolist() == [[1, 1], [0, 2], [1, 3]]


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    """A mark at the beginning, line ends of two characters, blanks after commas, quotes, an empty last line."""
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffa, "b, c",Label\r\n1, 2, x\r\n3,4,"y, z"\r\n\r\n'.encode())
    source = table(path, 2)
    assert source.load("all")[0].tolist() == [[1, 2], [3, 4]]
    assert (source.columns, source.classes_by_number) == (["a", "b, c"], ["x", "y, z"])


def test_files_for_the_parts_in_any_order_of_columns(tmp_path: Path) -> None:
    frame = iris()
    write(tmp_path / "mine/train.csv", frame[:120])
    write(tmp_path / "mine/test.parquet", frame[120:][frame.columns[::-1]])
    source = table(tmp_path / "mine", val_fraction=0.25)
    assert [len(source.split(name)) for name in SPLIT_NAMES] == [90, 30, 30]
    assert np.array_equal(source.split("test").x, load_iris().data[120:].astype(np.float32))
    assert source.split("test").y.unique().tolist() == [2]  # numbered as in the training part, not anew
    write(tmp_path / "mine/val.csv", frame[50:60])
    parts = table(tmp_path / "mine")
    assert [len(parts.split(name)) for name in SPLIT_NAMES] == [120, 10, 30]
    assert parts.split("val").y.tolist() == [1] * 10
    write(tmp_path / "mine/val.csv", frame[50:60].assign(target="rose"))
    with pytest.raises(DataError, match=r"val\.csv: row 1 below the header has the class 'rose'"):
        table(tmp_path / "mine").prepare()
    write(tmp_path / "mine/val.csv", frame[50:60].drop(columns="petal width (cm)"))
    with pytest.raises(DataError, match=r"val\.csv: has no column 'petal width \(cm\)', which it should have"):
        table(tmp_path / "mine").prepare()
    write(tmp_path / "mine/test.csv", frame)
    with pytest.raises(DataError, match=r"test\.csv: test\.parquet is there as well"):
        table(tmp_path / "mine").prepare()


def test_a_table_without_classes_has_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "mine/test.csv", iris().drop(columns="target"))
    source = table(tmp_path / "mine")
    source.prepare()
    assert (source.split("test").y == -1).all() and source.classes_by_number == []
    with pytest.raises(DataError, match=r"has no train\.csv or train\.parquet"):
        source.split("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,label\n1,2,x\n3,,y\n", "the column 'b' has no value in row 2 below the header"),
        ("a,b,label\n1,2,x\n3,?,y\n", "the column 'b' has no value in row 2 below the header"),
        ("a,b,label\n1,2,x\n3,high,y\n", "the column 'b' has 'high', which is no finite number, in row 2 below"),
        ("a,b,label\n1,inf,x\n", "the column 'b' has 'inf', which is no finite number, in row 1 below"),
        ("a,b,label\n1,1e300,x\n", r"the column 'b' has '1e\+300', which is no finite number, in row 1 below"),
        ("a,b,label\n1,2,x\n3,4,\n", "the column 'label' has no class in row 2 below the header"),
        ("a,b,label\n1,2,x\n3,4\n", "the column 'label' has no class in row 2 below the header"),
        ("a,b,label\n1,2,x,9\n", "cannot be read as CSV"),
        ("a,b,label\n1,2,x\n1,2,x,9\n", r"cannot be read as CSV \(.*Expected 3 fields in line 3, saw 4\)"),
        (",b,label\n0,2,x\n", "column 1 has no name"),
        ("a,a,label\n0,2,x\n", "has more than one column 'a'"),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "its first line holds numbers; add a header line"),
        ("a;b;label\n1;2;x\n", "separated by semicolons"),
        ("a,class,label\n1,2,x\n", "the columns class and label could all be the classes"),
        ("a,b,label\n", "has no rows below its header"),
        ("", "cannot be read as CSV"),
        ("a,b,c,label\n1,2,3,x\n", r"3 features .* the fixed\.data_shape that fits is \[3\]"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_told_with_column_and_row(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        table(path, 2).prepare()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_wrong_with_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.parquet"
    frame = pd.DataFrame({"day": pd.to_datetime(["2024-01-01", "2024-01-02"]), "b": [1.0, None], "label": ["x", "y"]})
    write(path, frame)
    with pytest.raises(DataError, match="the column 'day' has '2024-01-01 00:00:00', which is no finite number"):
        table(path, 2).prepare()
    with pytest.raises(DataError, match="the column 'b' has no value in row 2"):
        table(path, 1, ignore=["day"]).prepare()
    sound = path.read_bytes()
    for damaged in (sound[:-9], sound[:4] + bytes(60) + sound[64:]):  # the end, which names the columns, and a column
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            table(path, 2).prepare()
    monkeypatch.setattr("uncertainty_est.data.sources.table_frames.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs pyarrow to be read; install it with: pip install '.*\[parquet\]'"):
        table(path, 2).prepare()
    assert util.find_spec("pyarrow"), "the extra is among the developers' tools"


def test_files_that_are_not_there_or_no_tables(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "no.csv", r"no\.csv: cannot be read as CSV \(.*No such file"),
        (tmp_path / "no.xlsx", r"no\.xlsx: is no table; give a \.csv or \.parquet"),
        (tmp_path, r"has no test\.csv or test\.parquet"),
    ]:
        with pytest.raises(DataError, match=message):
            table(path).prepare()


# ------------------------------------------------------------------------------------------------- by configuration


def write_folder(folder: Path, classes: int = 3, images: int = 20) -> Path:
    """PNGs of noise, of 9 x 7 pixels, in a folder a class."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for n in range(images):
            pixels = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{n}.png")
    return folder


def write_own(kind: str, folder: Path) -> tuple[Path, list[int], int]:
    """A small data set for ``dataset=<kind>``: its path, its data_shape and its num_classes."""
    if kind == "folder":
        return write_folder(folder / "images"), [3, 8, 8], 3
    if kind == "table":
        return write(folder / "iris.csv", iris()), [4], 3
    path = folder / "mine.npz"
    if kind == "npz":
        write_pack(path, (8, 8, 3), classes=5)
        return path, [3, 8, 8], 5
    x, y = load_iris(return_X_y=True)
    np.savez(path, x_train=x, y_train=y, x_test=x[::5], y_test=y[::5])
    return path, [4], 3


@pytest.mark.parametrize("kind", dataset_names(own=True))
def test_a_configuration_and_a_path_are_enough(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shape, classes = write_own(kind, tmp_path)
    monkeypatch.chdir(tmp_path)
    model = "fc_ce_baseline" if len(shape) == 1 else "img_ce_baseline"
    (fixed,) = compose_points(
        f"dataset={kind}",
        f"model={model}",
        f"fixed.path={path.relative_to(tmp_path)}",
        f"fixed.data_shape={shape}",
        f"fixed.num_classes={classes}",
        "fixed.data_root=data",
    )
    monkeypatch.chdir("/")
    assert fixed["path"] == str(path.resolve()) and fixed["data_root"] == str(tmp_path.resolve() / "data")
    data = build_data(fixed)
    data.prepare_data()
    data.setup()
    assert len(data.class_counts) == classes and data.class_counts.min() > 0
    x, y = next(iter(data.train_dataloader()))["id"]
    assert tuple(x.shape[1:]) == tuple(shape)
    probs = build_method(fixed).eval().predict(x).probs
    assert probs is not None and probs.shape == (len(y), classes)


def test_what_is_missing_or_does_not_fit_is_told_with_its_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _, _ = write_own("table", tmp_path)
    with pytest.raises(ConfigError, match=r"^fixed\.path: the data set 'table' is your own; say where it is"):
        compose_points("dataset=table", "model=fc_ddu")
    with pytest.raises(ConfigError, match=r"^fixed\.path: '.*iris\.csv' is read by .* 'table', .*; set dataset=table"):
        compose_points("dataset=folder", "model=fc_ddu", f"fixed.path={path}", "fixed.data_shape=[1,8,8]")
    words = ["dataset=table", "model=fc_ddu", f"fixed.path={path}", "fixed.data_shape=[4]"]
    with pytest.raises(
        ConfigError, match=rf"^fixed\.num_classes: a value must be given; .*data\.check --path {path} tells it"
    ):
        compose_points(*words)
    (fixed,) = compose_points(*words, "fixed.num_classes=2")
    with pytest.raises(DataError, match=r"range from 0 to 2, .* set fixed\.num_classes=3"):
        build_data(fixed).setup()
    (fixed,) = compose_points(*words, "fixed.num_classes=7")
    build_data(fixed).setup()
    assert "fixed.num_classes is 7, but no item has a label above 2" in caplog.text
    write(path, iris().drop(columns="target"))
    with pytest.raises(DataError, match=r"range from -1 to -1, .* needs labels"):
        build_data(fixed).setup()


@pytest.fixture
def root(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the data set ``mine`` into a data root in one of the forms that it can have."""

    def make(form: str) -> Path:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        unlabelled = iris().drop(columns="target")
        if form == "images":
            write_folder(folder / "mine")
        elif form == "tables":
            write(folder / "mine/test.csv", unlabelled)
        elif form == ".npz":
            np.savez(folder / "mine.npz", x_test=unlabelled.to_numpy(np.float32))
        else:
            write(folder / f"mine{form}", unlabelled)
        return folder

    return make


@pytest.mark.parametrize("form", ["images", "tables", ".csv", ".parquet", ".npz"])
def test_what_lies_in_the_data_root_is_an_ood_set(form: str, root: Callable[[str], Path], tmp_path: Path) -> None:
    path, shape, classes = write_own("folder" if form == "images" else "table", tmp_path)
    (fixed,) = compose_points(
        "dataset=folder" if form == "images" else "dataset=table",
        f"fixed.path={path}",
        f"fixed.data_shape={shape}",
        f"fixed.num_classes={classes}",
        f"fixed.data_root={root(form)}",
        "fixed.test_ood_datasets=[mine, mine_unscaled]",
        "model=fc_ddu",
    )
    data = build_data(fixed)
    data.prepare_data()
    (x, y), (far, _) = (next(iter(data.ood_loader(name, "test"))) for name in fixed["test_ood_datasets"])
    assert x.shape[1:] == far.shape[1:] == tuple(shape) and len(x) == len(y)
    assert far.abs().mean() > 20 * x.abs().mean()
    assert data.ood_sources["test"]["mine"].name == "mine"
    n = {"images": 60, ".csv": 150, ".parquet": 150}.get(form)
    if n is not None:  # one part, of which nothing is trained on
        assert len(data.ood_sources["test"]["mine"].split("test")) == 0.9 * n
        assert len(data.ood_sources["test"]["mine_unscaled"].split("test")) == 0.9 * n


@pytest.mark.parametrize("key", ["dataset", "ood_dataset"])
def test_what_is_trained_on_has_a_training_split(key: str, root: Callable[[str], Path], tmp_path: Path) -> None:
    (fixed,) = compose_points(
        "dataset=folder",
        f"fixed.path={write_folder(tmp_path / 'images')}",
        f"fixed.{key}=mine",
        "fixed.data_shape=[3,8,8]",
        "fixed.num_classes=3",
        f"fixed.data_root={root('images')}",
        "fixed.test_ood_datasets=[]",
        "model=img_ce_baseline",
    )
    data = build_data(fixed)
    data.setup()
    source = data.id_source if key == "dataset" else data.ood_source
    assert source is not None and (source.name, len(source.split("train"))) == ("mine", 42)


def test_a_name_that_two_files_have_is_refused(root: Callable[[str], Path]) -> None:
    root("images")
    with pytest.raises(ConfigError, match=r"'mine' is there more than once: .*mine, .*mine\.csv; rename all but one"):
        find_source("mine", SOURCES, root(".csv"))


def test_an_ood_table_with_columns_in_another_order_is_refused(root: Callable[[str], Path], tmp_path: Path) -> None:
    folder = root(".csv")
    write(folder / "mine.csv", iris()[list(iris().columns[::-1])])
    (fixed,) = compose_points(
        "dataset=table",
        f"fixed.path={write(tmp_path / 'iris.csv', iris())}",
        "fixed.data_shape=[4]",
        "fixed.num_classes=3",
        f"fixed.data_root={folder}",
        "fixed.test_ood_datasets=[mine]",
        "model=fc_ddu",
    )
    data = build_data(fixed)
    for _ in range(2):
        with pytest.raises(
            DataError, match="mine: its columns come in another order than those of iris; order them as"
        ):
            next(iter(data.ood_loader("mine", "test")))


def test_kinds_are_told_by_names(tmp_path: Path) -> None:
    for kind in ("folder", "table", "npz"):
        assert kind_of(write_own(kind, tmp_path)[0]) == kind
    assert kind_of(write(tmp_path / "parts/train.csv", iris()).parent) == "table"
    with pytest.raises(DataError, match="there is no such file or folder; a data set is a folder of images"):
        kind_of(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"cannot be read by its ending '\.zip'"):
        (tmp_path / "mine.zip").touch()
        kind_of(tmp_path / "mine.zip")


def test_links_are_followed_but_not_round_and_round(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for folder, names in ((tmp_path / "set" / "cats", ["a.png", ".hidden.png"]), (elsewhere, ["b.png"])):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    (tmp_path / "set" / "dogs").symlink_to(elsewhere)
    (tmp_path / "set" / "cats" / "up").symlink_to(tmp_path / "set")
    (elsewhere / "back").symlink_to(tmp_path / "set" / "cats")
    found = {folder.relative_to(tmp_path / "set").as_posix(): files for folder, files in files_below(tmp_path / "set")}
    assert found == {".": [], "cats": ["a.png"], "dogs": ["b.png"], "dogs/back": ["a.png"]}


# -------------------------------------------------------------------------------------------------- docs/own_data.md


def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands, in a folder of their own: two epochs, and the evaluation from another folder."""
    text = (ROOT / "docs" / "own_data.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ").splitlines()
    commands = [words for line in lines if (words := shlex.split(line))]
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "docs/own_data.md", "exec"), {})
    trained = []
    for words in commands:
        if words[1] == "train_local.py":
            quick = ["trainer=cpu", "logger=none", "network=fc", "fixed.trainer_config.max_epochs=2"]
            trained += run_points(compose_points(*words[2:], *quick, "fixed.trainer_config.enable_progress_bar=false"))
        elif words[1] == "evaluate.py":
            monkeypatch.chdir("/")
            arguments = [str(tmp_path / word) if word in ("runs", "out") else word for word in words[2:]]
            monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--no-plots"])
            assert evaluate_script.main() == 0
        else:
            assert words[1:3] == ["-m", "uncertainty_est.data.check"]
            own = vars(check.parser().parse_args(words[3:]))
            described = describe(own["path"], own["target"], own["ignore"]).command(own["path"]).split()
            same = [set(described) <= set(other) for other in commands]
            assert any(same), described  # what it tells is what the page types next
    assert [set(results["ood"]) for results in trained] == [
        {"unknown", "uniform_noise"},
        {"virginica", "uniform_noise"},
    ]
    table = pd.read_csv(tmp_path / "out" / "ood-out.csv")
    rows = table.query("Headline and Metric == 'AUROC'").set_index("OOD dataset")
    assert rows.loc["unknown", "n_ood"] == 319 and rows.loc["virginica", "n_ood"] == 45
    assert set(table["ID dataset"]) == {"folder", "table"}
    # A set that came later, by name.
    iris().drop(columns="target").to_parquet(tmp_path / "my" / "later.parquet", index=False)
    (run_dir,) = (Path(results["run_dir"]) for results in trained if "virginica" in results["ood"])
    words = ["--checkpoint", tmp_path / run_dir, "--ood-dataset", "later", "--output-folder", tmp_path / "later"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words), "--no-plots"])
    assert evaluate_script.main() == 0
    table = pd.read_csv(tmp_path / "later" / "ood-out.csv")
    assert set(table["OOD dataset"]) == {"later"} and set(table["n_ood"]) == {135}
