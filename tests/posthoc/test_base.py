"""How scores are named and found, their settings, and steps on inputs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from uncertainty_est.errors import ConfigError
from uncertainty_est.posthoc.base import PerturbedScore, all_scores, scores_named


class Linear(PerturbedScore):
    """The sum of the features."""

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return features.sum(-1)


def test_every_score_is_found_once_and_can_be_named() -> None:
    known = all_scores()
    assert {"msp", "max_logit", "energy", "entropy", "gen"} <= set(known)
    assert list(known) == sorted(known)
    titles = [cls.title for cls in known.values()]
    assert len(set(titles)) == len(titles)
    everything = scores_named(["all"])
    assert [score.name for score in everything] == [name for name, cls in known.items() if cls.available()]
    assert all(score.label == score.title for score in everything)


def test_every_setting_has_a_default_and_a_type_that_a_word_can_be_read_as() -> None:
    for cls in all_scores().values():
        for parameter in inspect.signature(cls).parameters.values():
            assert parameter.default is not inspect.Parameter.empty, (cls, parameter)


def test_settings_are_read_by_type_and_told_in_the_label() -> None:
    gen, again, plain = scores_named(["gen:gamma=0.5:top=3", "gen:gamma=0.25", "energy"])
    assert (gen.gamma, gen.top, again.gamma) == (0.5, 3, 0.25)  # type: ignore[attr-defined]
    assert [gen.label, again.label, plain.label] == ["GEN (gamma=0.5, top=3)", "GEN (gamma=0.25)", "Energy"]
    assert [score.name for score in scores_named(["energy", "msp", "energy"])] == ["energy", "msp"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("enrgy", "did you mean 'energy'.*there are: .*msp"),
        ("energy:temprature=2", "settings temperature.*did you mean 'temperature'"),
        ("energy:2", "each written :setting=value"),
        ("energy:temperature=warm", "'warm' is not a valid float"),
        ("energy:temperature=0", "temperature must be positive"),
        ("gen:top=1.5", "'1.5' is not a valid int"),
        ("msp:k=1", "has no settings"),
    ],
)
def test_a_slip_is_told_in_one_sentence(spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        scores_named([spec])


def test_the_step_goes_up_by_its_length_in_raw_units() -> None:
    weight = torch.tensor([[2.0, -3.0, 0.0]])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    score = Linear(epsilon=0.25)
    with torch.no_grad():
        moved = score.score_inputs(x, lambda inputs: (inputs * weight, inputs), torch.tensor(0.5))
    # sign (1, -1, 0) times 0.25 / 0.5
    torch.testing.assert_close(moved, ((x + torch.tensor([0.5, -0.5, 0.0])) * weight).sum(-1))
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        Linear(epsilon=-1.0)


def test_the_readme_lists_every_score_with_its_settings() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    rows = {row[0]: row[1] for row in re.findall(r"^\| `([a-z_]+)`(?: \*)? \|(.*)\|$", readme, flags=re.MULTILINE)}
    for name, cls in all_scores().items():
        assert all(f"`{setting}`" in rows[name] for setting in inspect.signature(cls).parameters), name
        fitted_to = rows[name].split("|")[1].strip()
        assert fitted_to == {None: "", "train": "training", "val": "validation"}[cls.split]
