"""Ambiguous digits made from real ones: what is kept, how labels are drawn, and the files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from tests.data.layouts import write_idx
from uncertainty_est import generate_ambiguous
from uncertainty_est.data.generate_ambiguous import main, parser
from uncertainty_est.data.sources.dirty_mnist import AmbiguousMNIST
from uncertainty_est.errors import ConfigError, DataError
from uncertainty_est.generate_ambiguous import Judges, Settings, ambiguous, fit, generate, make_part, train_judges
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.fc import FC

QUICK = Settings(n=40, vae_epochs=30, members=2, member_epochs=15, latent_dim=8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits, enlarged, where MNIST is expected."""
    folder = tmp_path_factory.mktemp("data")
    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) * 255 / 16
    large = F.interpolate(x, (28, 28), mode="bilinear").round().numpy()[:, 0]
    for stem, rows in (("train", slice(1400)), ("t10k", slice(1400, None))):
        write_idx(folder / "MNIST" / "raw" / f"{stem}-images-idx3-ubyte", large[rows])
        write_idx(folder / "MNIST" / "raw" / f"{stem}-labels-idx1-ubyte", digits.target[rows])
    return folder


def probs_of_two(p: float, q: float) -> Tensor:
    """Two members that give class 0 `p` and `q`, and the rest to class 1."""
    return torch.tensor([[[p, 1 - p]], [[q, 1 - q]]], dtype=torch.float64)


def test_what_is_certain_or_disputed_or_no_digit_is_not_ambiguous() -> None:
    settings = Settings(min_entropy=0.5, max_entropy=1.0, max_disagreement=0.1)
    assert ambiguous(probs_of_two(0.5, 0.5), settings).all()  # entropy ln 2 = 0.69
    assert not ambiguous(probs_of_two(0.9, 0.9), settings).any()  # 0.33
    # Entropy ln 2 as well, of which ln 2 - H(0.9) = 0.37 are disagreement.
    assert not ambiguous(probs_of_two(0.9, 0.1), settings).any()
    assert not ambiguous(torch.full((2, 1, 3), 1 / 3), settings).any()  # ln 3 = 1.10
    assert Settings(max_disagreement=0.36) != Settings()
    loose = dataclasses.replace(
        settings, max_disagreement=math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1) + 1e-9
    )
    assert ambiguous(probs_of_two(0.9, 0.1), loose).all()


def test_judges_answer_with_softmax_at_their_own_temperature() -> None:
    torch.manual_seed(0)
    members = [CEBaseline(FC((1, 28, 28), 10, [])) for _ in range(2)]
    temperatures = [torch.tensor(t, dtype=torch.float64) for t in (0.5, 3.0)]
    x = torch.rand(5, 1, 28, 28)
    expected = [(m.network(x) / t).softmax(-1) for m, t in zip(members, temperatures, strict=True)]
    torch.testing.assert_close(
        Judges(members, temperatures).probs(x), torch.stack(expected).double(), rtol=1e-5, atol=1e-6
    )


class _Midway:
    """A decoder of images whose mean says how two digits were mixed."""

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 28, 28)


class _ByBrightness:
    def probs(self, x: Tensor) -> Tensor:
        p = x.double().mean((1, 2, 3))
        return torch.stack([p, 1 - p], -1).expand(2, -1, -1)


def test_blends_are_of_two_classes_and_labels_follow_their_probabilities() -> None:
    # Black images of class 0 and white ones of class 1: the brightness of a blend is the weight of class 1.
    y = torch.arange(50) % 2
    x = y.float().view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    settings = Settings(n=5000, blend=0.9, labels_per_image=20, min_entropy=0.2, max_entropy=0.7)
    torch.manual_seed(0)
    images, labels = make_part(_Midway(), _ByBrightness(), x, y, settings)  # type: ignore[arg-type]
    weight = images.mean((1, 2, 3)).double()
    assert images.shape == (5000, 1, 28, 28) and labels.shape == (5000, 20)
    assert weight.min() > 0.099 and weight.max() < 0.901 and weight.std() == pytest.approx(0.8 / 12**0.5, rel=0.03)
    # Class 0 has the brightness as its probability; each mean of 20 labels has the variance p (1 - p) / 20.
    deviation = (labels == 0).double().mean(1) - weight
    variance = weight * (1 - weight) / 20
    assert deviation.mean().abs() < 4 * (variance.mean() / 5000) ** 0.5
    assert (deviation.square() / variance).mean() == pytest.approx(1, abs=0.1)


def test_a_set_that_cannot_be_filled_is_refused() -> None:
    y = torch.arange(50) % 2
    x = y.float().view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    with pytest.raises(DataError, match=r"of \d+ blends of two digits only 0 are ambiguous and 3 are wanted"):
        settings = Settings(n=3, min_entropy=0.7, max_entropy=0.8)
        make_part(_Midway(), _ByBrightness(), x, y, settings)  # type: ignore[arg-type]


def test_generated_digits_are_read_like_the_published_ones_and_are_ambiguous(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.random.get_rng_state()
    folder = generate(root, QUICK)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sorted(path.name for path in folder.iterdir()) == ["amnist_labels.pt", "amnist_samples.pt", "generated.json"]
    assert json.loads((folder / "generated.json").read_text())["settings"] == dataclasses.asdict(QUICK)
    source = AmbiguousMNIST(root=str(root), shape=(1, 28, 28))
    train, test = source.load("train"), source.load("test")
    assert len(train[0]) == len(test[0]) == 400
    # Most images have two digits among ten labels, which a clean digit would not.
    distinct = torch.tensor([len(labels.unique()) for labels in test[1].view(-1, 10)])
    assert (distinct >= 2).double().mean() > 0.9
    # Digits they are: to classifiers that never saw them they are as likely as not one of their own labels.
    torch.manual_seed(5)
    mnist = [tensor for name in ("train", "val") for tensor in _items(root, name)]
    probs = train_judges(*mnist, QUICK).probs(test[0].float() / 255).mean(0)
    assert probs.gather(1, test[1][:, None]).mean() > 0.4

    monkeypatch.setattr(generate_ambiguous, "train_vae", None)  # nothing is trained a second time
    assert generate(root, QUICK) == folder
    with pytest.raises(ConfigError, match=r"--data-root: '.*AmbiguousMNIST' is there already and holds another set"):
        generate(root, dataclasses.replace(QUICK, seed=2))


def _items(root: Path, name: str) -> tuple[Tensor, Tensor]:
    source = generate_ambiguous.TorchvisionImages("MNIST", str(root), shape=(1, 28, 28))
    split = source.split(name)  # type: ignore[arg-type]
    return split.x.float() / 255, split.y


def test_fitting_is_determined_by_the_seed_and_learns() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(600, 1, 4, 4), torch.arange(600) % 2
    x[y == 1] += 1
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        method = CEBaseline(FC((1, 4, 4), 2, []))
        fit(method, x, y, 150)
        found.append(method.network(x))
    assert torch.equal(*found) and (found[0].argmax(1) == y).double().mean() > 0.9


def test_an_interrupted_set_leaves_nothing_behind(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "MNIST").symlink_to(root / "MNIST")
    monkeypatch.setattr(generate_ambiguous, "fit", lambda *_: None)
    monkeypatch.setattr(generate_ambiguous, "make_part", lambda *_: (torch.zeros(1), torch.zeros(1)))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_ambiguous.json, "dumps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "--n and --labels-per-image must be at least 1"),
        ({"members": 1}, "--members at least 2"),
        ({"vae_epochs": 0}, "--vae-epochs, --member-epochs and --latent-dim must be at least 1"),
        ({"blend": 0.4}, r"--blend must lie in \[0\.5, 1\]"),
        ({"min_entropy": 2.0}, "--min-entropy below --max-entropy, got 0.7, 2.0 and 1.4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(tmp_path, dataclasses.replace(QUICK, **changes))  # type: ignore[arg-type]


def test_the_command_knows_every_setting_and_its_default(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, Settings]] = []
    monkeypatch.setattr(generate_ambiguous, "generate", lambda *arguments: asked.append(arguments))
    arguments = ["--data-root", str(tmp_path)]
    assert main(arguments) == 0
    for field in dataclasses.fields(Settings):
        assert f"(default: {field.default})" in " ".join(parser().format_help().split())
        arguments += [f"--{field.name.replace('_', '-')}", "1"]
    main(arguments)
    assert asked == [(tmp_path, Settings()), (tmp_path, Settings(*[1] * len(dataclasses.fields(Settings))))]
