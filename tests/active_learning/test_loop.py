"""Steps: each acquires what the method's score says, and none depends on where a run was interrupted."""

from __future__ import annotations

import re
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests.conftest import CONFIGS, ROOT
from tests.processes import Command
from uncertainty_est.active_learning import loop
from uncertainty_est.active_learning.curves import COLUMNS
from uncertainty_est.active_learning.loop import learn_all, learn_and_draw
from uncertainty_est.active_learning.pool import Pool
from uncertainty_est.active_learning.settings import Acquisition, Protocol, read
from uncertainty_est.active_learning.state import STATE_FILE, State, load_state
from uncertainty_est.data.sources.image import Digits
from uncertainty_est.errors import ConfigError, DataError
from uncertainty_est.evaluation.scoring import score_loader
from uncertainty_est.launch import points_of
from uncertainty_est.models.base import Method

README = (ROOT / "README.md").read_text()
ACQUISITIONS = sorted(path.stem for path in (CONFIGS / "acquisition").glob("*.yaml"))
QUICK = [
    "dataset=digits",
    "network=fc",
    "fixed.model_config.network.hidden_dims=[32]",
    "trainer=cpu",
    "fixed.trainer_config.max_epochs=2",
    "active_learning.labels_per_step=10",
    "active_learning.max_labels=40",
    "active_learning.epoch_items=320",
]


def composed(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("active_learning", overrides=[*QUICK, f"fixed.output_folder={folder}", *overrides])


def learn(folder: Path, *overrides: str) -> tuple[pd.DataFrame, State]:
    """Table and state of one run."""
    (path,) = learn_all(composed(folder, *overrides), CONFIGS / "source")
    state = load_state(path.parent)
    assert state is not None
    return pd.read_csv(path), state


def without_times(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="Minutes")


class KilledError(Exception):
    """In place of a signal."""


@pytest.mark.parametrize(
    ("model", "warm"), [("model=img_ddu acquisition=gmm_density", "true"), ("model=img_ce_baseline", "false")]
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    model: str, warm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*model.split(), f"active_learning.warm={warm}"]
    if warm == "true":
        options += ["logger=csv", "fixed.trainer_config.log_every_n_steps=5"]
    table, state = learn(tmp_path / "whole", *options)
    assert table["Labels"].tolist() == [20, 30, 40]
    fit_posthoc, calls = loop.fit_posthoc, []

    def killed_in_every_second_step(*arguments: object) -> None:
        calls.append(0)
        if len(calls) % 2 == 0:
            raise KilledError  # the network is trained, nothing is acquired
        fit_posthoc(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "fit_posthoc", killed_in_every_second_step)
    for _ in range(2):
        torch.rand(7)  # what else draws in this process does not matter
        with pytest.raises(KilledError):
            learn(tmp_path / "parts", *options)
    again, continued = learn(tmp_path / "parts", *options)
    assert len(calls) == 5, "three steps, two of them twice"
    pd.testing.assert_frame_equal(without_times(table), without_times(again), check_exact=True)
    assert continued.labelled == state.labelled
    (folder,) = (tmp_path / "parts").iterdir()
    logs = [f"step{number}" for number in range(3)] if warm == "true" else []
    assert sorted(path.name for path in folder.iterdir()) == ["curve.csv", "settings.yaml", "state.pt", *logs]
    assert (state.weights is None) == (warm == "false")
    if state.weights is not None and continued.weights is not None:
        assert all(torch.equal(value, continued.weights[key]) for key, value in state.weights.items())


def test_more_labels_later_are_the_same_as_at_once(tmp_path: Path) -> None:
    few = learn(tmp_path / "parts", "model=img_ce_baseline", "active_learning.max_labels=25")[0]
    assert few["Labels"].tolist() == [20]
    more, _ = learn(tmp_path / "parts", "model=img_ce_baseline")
    whole, _ = learn(tmp_path / "whole", "model=img_ce_baseline")
    pd.testing.assert_frame_equal(without_times(more), without_times(whole), check_exact=True)
    assert more["Minutes"][0] == few["Minutes"][0], "a finished step is not repeated"


def command(folder: Path) -> list[str]:
    overrides = [*QUICK, f"fixed.output_folder={folder}", "model=img_ce_baseline"]
    return ["-m", "uncertainty_est.active_learning", *overrides]


@pytest.mark.slow
def test_a_killed_process_loses_one_step_only(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    state_file = folder / "img_ce_baseline-digits-entropy-seed1" / STATE_FILE
    process = Command(command(folder))
    deadline = time.monotonic() + 120
    while not state_file.is_file() and process.running and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send(signal.SIGKILL)
    process.wait()
    before = load_state(state_file.parent)
    assert before is not None and before.rows
    done = Command(command(folder)).wait()
    assert done.returncode == 0, done.stderr
    after = pd.read_csv(state_file.with_name("curve.csv"))
    assert after["Minutes"][: len(before.rows)].tolist() == [row["Minutes"] for row in before.rows]
    whole, _ = learn(tmp_path / "whole", "model=img_ce_baseline")
    pd.testing.assert_frame_equal(without_times(after), without_times(whole), check_exact=True)
    assert (folder / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_every_acquisition_takes_the_least_in_distribution(
    acquisition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the example that its YAML names: the labels of a step are the k lowest scores of the rest of the pool."""
    node = yaml.safe_load((CONFIGS / "acquisition" / f"{acquisition}.yaml").read_text())
    assert node["name"] == acquisition
    seen: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]] = []
    acquire = loop.acquire

    def watched(method: Method, how: Acquisition, pool: Pool, rest: np.ndarray, *more: object) -> np.ndarray:
        chosen = acquire(method, how, pool, rest, *more)  # type: ignore[arg-type]
        scored = score_loader(method, pool.data.training_items_loader(torch.from_numpy(rest)))
        seen.append((scored.scores, rest, chosen))
        return chosen

    monkeypatch.setattr(loop, "acquire", watched)
    table, state = learn(
        tmp_path, f"model={node['example']}", f"acquisition={acquisition}", "active_learning.max_labels=30"
    )
    assert list(table) == list(COLUMNS)
    assert table["Acquisition"].unique().tolist() == [acquisition]
    labelled = state.labelled[:20]
    assert np.array_equal(np.bincount(Digits(shape=[1, 8, 8]).split("train").y[labelled]), np.full(10, 2))
    for scores, rest, chosen in seen:
        assert not set(rest) & set(labelled) and set(chosen) <= set(rest) and len(set(chosen)) == 10
        if node["score"] is not None:
            values = scores[node["score"]]
            assert values[np.isin(rest, chosen)].max() <= values[~np.isin(rest, chosen)].min()
        labelled = [*labelled, *chosen]
    assert labelled == state.labelled and len(seen) == 2
    used = {node["score"]} - {None}
    assert used <= set(node["needs"])


def test_random_does_not_read_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = {}
    for acquisition in ("random", "entropy"):
        _, state = learn(tmp_path, "model=img_ce_baseline", f"acquisition={acquisition}")
        starts[acquisition] = state
    one, two = starts.values()
    assert one.labelled[:20] == two.labelled[:20], "all acquisitions of a seed start alike"
    assert {k: one.rows[0][k] for k in ("Accuracy", "NLL")} == {k: two.rows[0][k] for k in ("Accuracy", "NLL")}
    assert one.labelled[20:] != two.labelled[20:]


def test_highest_first(tmp_path: Path) -> None:
    """The two ends of one order: together, all that is not labelled yet."""
    n = 1258 - 20
    quick = ("model=img_ce_baseline", "active_learning.max_labels=20")
    _, least = learn(tmp_path / "low", *quick, f"active_learning.labels_per_step={n - 10}")
    _, most = learn(tmp_path / "high", *quick, "acquisition.lowest_first=false")
    assert sorted(least.labelled + most.labelled[20:]) == list(range(n + 20))


def write_ambiguous(folder: Path) -> None:
    """Means of two digits of different classes, with the label of the first."""
    train = Digits(shape=[1, 8, 8]).split("train")
    x, y = train.x[:, 0].numpy(), train.y.numpy()
    first, second = np.random.default_rng(0).integers(len(x), size=(2, 400))
    pair = y[first] != y[second]
    mixed = ((x[first[pair]].astype(int) + x[second[pair]]) // 2).astype(np.uint8)
    labels = y[first[pair]]
    np.savez(folder / "mixed_digits.npz", x_train=mixed, y_train=labels, x_test=mixed, y_test=labels)


def test_a_mixed_pool_tells_how_many_of_the_acquired_are_ambiguous(tmp_path: Path) -> None:
    write_ambiguous(tmp_path)
    table, state = learn(
        tmp_path,
        "model=img_ce_baseline",
        "active_learning.pool_extra=mixed_digits",
        f"fixed.data_root={tmp_path}",
        "fixed.trainer_config.max_epochs=10",
    )
    own = len(Digits(shape=[1, 8, 8]).split("train"))
    extra = np.array(state.labelled) >= own
    assert not extra[:20].any(), "the start is of the data set itself"
    assert np.isnan(table["Ambiguous share"][0])
    for step in (1, 2):
        assert table["Ambiguous share"][step] == pytest.approx(100 * extra[20 : 20 + 10 * step].mean())
    assert table["Dataset"].unique().tolist() == ["digits + mixed_digits"]
    assert table["Ambiguous share"][2] > 0, "entropy likes what is ambiguous"


def test_seeds_are_runs_of_their_own_and_one_figure_shows_them(tmp_path: Path) -> None:
    quick = ("model=img_ce_baseline", "active_learning.max_labels=30", "active_learning.seeds=[3,4]")
    figure = learn_and_draw(composed(tmp_path, *quick), CONFIGS / "source")
    assert figure == tmp_path / "curves.png" and figure.stat().st_size > 5000
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == [f"img_ce_baseline-digits-entropy-seed{seed}" for seed in (3, 4)]
    with pytest.raises(ConfigError, match="active_learning.seeds: grid has seeds, too"):
        learn_all(composed(tmp_path, *quick, "grid=seed"), CONFIGS / "source")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=img_ce_baseline", "acquisition=gmm_density"], r"no score 'gmm_log_density' .*choose model=img_ddu"),
        (["model=img_ddu", "acquisition=mutual_information"], "no score 'MI' .*choose model=img_mc_dropout"),
        (
            ["model=img_ce_baseline", "acquisition=predictive_entropy"],
            "has no score 'MI' .*choose model=img_mc_dropout",
        ),
        (["model=img_mc_dropout", "acquisition=energy", "fixed.model_config.network.dropout=0.1"], "has no score 'p"),
        (["model=img_vae", "acquisition=random"], "active learning trains classifiers; choose model=img_ce_baseline"),
        (["model=img_ddu", "trainer=ddp_cpu"], "active learning trains in one process; choose trainer=cpu"),
        (["model=img_ddu", "active_learning.initial_labels=9"], "initial_labels: 9 is less than one for each of 10"),
        (["model=img_ddu", "active_learning.max_labels=19"], "max_labels: 19 is less than"),
        (["model=img_ddu", "active_learning.max_labels=2000"], "max_labels: 2000 is more than the 1258 items"),
        (["model=img_ddu", "active_learning.labels_per_step=0"], "labels_per_step: must be a whole number of at least"),
        (["model=img_ddu", "active_learning.seeds=[1,1]"], "active_learning.seeds: a seed is named twice"),
        (["model=img_ddu", "+active_learning.label_per_step=1"], "no such setting; did you mean 'labels_per_step'"),
        (
            ["model=img_ddu", "active_learning.pool_extra=digitz"],
            "there is no data set 'digitz'.*did you mean 'digits'",
        ),
        (["model=img_ddu", "active_learning.pool_extra=digits_unscaled"], "is in network space and digits in raw"),
        (["model=img_ddu", "fixed.on_divergence=hope"], "fixed.on_divergence: must be one of"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_one_sentence_and_nothing_left_behind(overrides: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=sentence):
        learn(tmp_path, *overrides)
    assert not list(tmp_path.iterdir())


def test_other_settings_or_damage_are_refused(tmp_path: Path) -> None:
    quick = ["model=img_ce_baseline", "active_learning.max_labels=20"]
    learn(tmp_path, *quick)
    with pytest.raises(
        ConfigError, match=r"holds a run with fixed.model_config.optimizer.lr=0.001, but now it is 0.1;"
    ):
        learn(tmp_path, *quick, "fixed.model_config.optimizer.lr=0.1")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / STATE_FILE).write_bytes((folder / STATE_FILE).read_bytes()[:100])
    with pytest.raises(DataError, match=f"{STATE_FILE} is damaged; remove .* to start anew"):
        learn(tmp_path, *quick)


def readme_commands() -> list[list[str]]:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)).splitlines()
    lines = [shlex.split(line, comments=True) for line in blocks if f"-m {loop.__package__} " in line]
    return [words[words.index(loop.__package__) + 1 :] for words in lines]


def test_the_readme_names_every_acquisition_and_its_commands_compose() -> None:
    table = README.split("## Active learning")[1].split("## ")[0]
    assert all(f"`{name}`" in table for name in ACQUISITIONS)
    assert len(readme_commands()) == 2
    for words in readme_commands():
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("active_learning", overrides=words)
        assert read(Protocol, config.active_learning, "active_learning").max_labels == 300
        assert points_of(config, CONFIGS / "source")


def test_read_names_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="acquisition.needs: a value must be given"):
        read(Acquisition, {"name": "a", "score": None, "lowest_first": True, "example": "b"}, "acquisition")


def test_accuracy_grows_with_labels(tmp_path: Path) -> None:
    """Two seeds of digits: 20 random labels against 420, and as good as a classifier of all labels can be expected."""
    more = (
        "acquisition=random",
        "model=img_ce_baseline",
        "active_learning.labels_per_step=400",
        "active_learning.max_labels=420",
        "active_learning.epoch_items=1280",
        "fixed.trainer_config.max_epochs=10",
        "fixed.model_config.network.hidden_dims=[128]",
        "active_learning.seeds=[1,2]",
    )
    for path in learn_all(composed(tmp_path, *more), CONFIGS / "source"):
        first, last = pd.read_csv(path)["Accuracy"]
        assert 50 < first < 85
        assert last > 90
