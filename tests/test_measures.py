"""Uncertainty measures and scores against closed forms, and their invariances."""

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from uncertainty_est import measures

LOGIT_KEYS = ["max p(y|x)", "p(x)", "Entropy", "Max logit"]
MEMBER_KEYS = ["MI", "Entropy", "Expected entropy", "Variance", "max p(y|x)"]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

logit_arrays = npst.arrays("float64", st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.floats(-50, 50)).map(
    torch.from_numpy
)
member_probs = npst.arrays(
    "float64",
    st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(2, 5)),
    elements=st.floats(-800, 800),  # wide enough for probabilities that underflow to zero
).map(lambda logits: torch.from_numpy(logits).softmax(-1))


def disagreeing() -> torch.Tensor:
    return torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], dtype=torch.float64)


# --- measures


def test_entropy_golden_values() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([0.6931471805599453, 0.3250829733914482, 0.0], dtype=torch.float64)
    torch.testing.assert_close(measures.entropy(probs), expected, rtol=0, atol=1e-15)


def test_entropy_sums_over_the_axis_it_is_given() -> None:
    probs = torch.rand(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(measures.entropy(probs, dim=1), measures.entropy(probs.transpose(1, 2)))


def test_entropy_of_the_uniform_distribution_is_log_c() -> None:
    assert measures.entropy(torch.full((7,), 1 / 7, dtype=torch.float64)).item() == pytest.approx(math.log(7))


def test_mutual_information_golden_value() -> None:
    assert measures.mutual_information(disagreeing()).item() == pytest.approx(0.3680642071684971, abs=1e-15)


@given(member_probs)
def test_mutual_information_lies_between_zero_and_the_entropy_of_the_mean(probs: torch.Tensor) -> None:
    mi = measures.mutual_information(probs)
    assert (mi >= 0).all()
    assert (mi <= measures.entropy(probs.mean(0)) + 1e-12).all()
    assert (mi <= math.log(min(probs.shape[0], probs.shape[-1])) + 1e-12).all()


def test_mutual_information_of_certain_members_that_disagree_is_log_m() -> None:
    members = torch.eye(3, dtype=torch.float64).unsqueeze(1)
    assert measures.mutual_information(members).item() == pytest.approx(math.log(3))


def test_mutual_information_is_the_mean_divergence_from_the_mean() -> None:
    probs = torch.randn(4, 6, 3, dtype=torch.float64).softmax(-1)
    divergence = (probs * (probs.log() - probs.mean(0).log())).sum(-1).mean(0)
    torch.testing.assert_close(measures.mutual_information(probs), divergence)


# --- logit scores


def test_logit_scores_golden_values() -> None:
    scores = measures.logit_scores(torch.tensor([[1.0, 2.0, 3.0]]))
    assert list(scores) == LOGIT_KEYS
    p = [math.exp(f - 3.4076059644443806) for f in (1, 2, 3)]
    assert scores["max p(y|x)"].item() == pytest.approx(0.6652409557748218, rel=1e-7)
    assert scores["p(x)"].item() == pytest.approx(3.4076059644443806, rel=1e-7)
    assert scores["Entropy"].item() == pytest.approx(sum(q * math.log(q) for q in p), rel=1e-7)
    assert scores["Max logit"].item() == 3.0


@given(logit_arrays, st.floats(-20, 20))
def test_a_shift_of_the_logits_moves_only_p_x_and_max_logit(logits: torch.Tensor, shift: float) -> None:
    before, after = measures.logit_scores(logits), measures.logit_scores(logits + shift)
    for name, moved in zip(LOGIT_KEYS, (0.0, shift, 0.0, shift), strict=True):
        torch.testing.assert_close(after[name], before[name] + moved, rtol=1e-5, atol=2e-5)


@given(logit_arrays, st.randoms(use_true_random=False))
def test_logit_scores_do_not_depend_on_the_order_of_classes(logits: torch.Tensor, random) -> None:
    order = random.sample(range(logits.shape[1]), logits.shape[1])
    before, after = measures.logit_scores(logits), measures.logit_scores(logits[:, order])
    for name in LOGIT_KEYS:
        torch.testing.assert_close(after[name], before[name])


@pytest.mark.parametrize("dtype", FLOATS)
def test_logit_scores_are_finite_float32_for_extreme_logits_of_any_type(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4], [1e4, 1e4], [-1e4, -1e4], [0.0, 0.0]], dtype=dtype)
    scores = measures.logit_scores(logits)
    for score in scores.values():
        assert score.dtype == torch.float32
        assert score.shape == (4,)
        assert score.isfinite().all()
    torch.testing.assert_close(scores["max p(y|x)"], torch.tensor([1.0, 0.5, 0.5, 0.5]))
    torch.testing.assert_close(scores["Entropy"], -math.log(2) * torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert (scores["p(x)"] >= scores["Max logit"]).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_scores_are_computed_in_float64_and_rounded_once(dtype: torch.dtype) -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    for name, score in measures.logit_scores(logits).items():
        assert torch.equal(score, measures.logit_scores(logits.double())[name]), name
    probs = logits.softmax(-1).unflatten(0, (5, 10))
    for name, score in measures.member_scores(probs).items():
        assert torch.equal(score, measures.member_scores(probs.double())[name]), name


def test_every_logit_score_prefers_the_confident_input() -> None:
    for name, score in measures.logit_scores(torch.tensor([[8.0, 0.0, 0.0], [1.0, 0.9, 0.8]])).items():
        assert score[0] > score[1], name


def test_entropy_tells_apart_probabilities_that_round_to_one() -> None:
    logits = torch.tensor([[40.0, 0.0], [50.0, 0.0]])
    sure, surer = measures.logit_scores(logits)["Entropy"]
    assert sure < surer < 0


def test_scores_of_one_input_keep_their_axis() -> None:
    assert all(score.shape == (1,) for score in measures.logit_scores(torch.zeros(1, 3)).values())
    assert all(score.shape == (1,) for score in measures.member_scores(disagreeing()).values())


# --- member scores


def test_member_scores_golden_values() -> None:
    scores = measures.member_scores(disagreeing())
    assert list(scores) == MEMBER_KEYS
    expected = [-0.3680642071684971, -0.6931471805599453, -0.3250829733914482, -0.32, 0.5]
    for name, value in zip(MEMBER_KEYS, expected, strict=True):
        assert scores[name].item() == pytest.approx(value, rel=1e-7)


def test_identical_members_disagree_by_nothing() -> None:
    probs = torch.randn(1, 50, 10, dtype=torch.float64).softmax(-1).repeat(5, 1, 1)
    scores = measures.member_scores(probs)
    assert scores["MI"].abs().max() < 1e-12
    assert scores["Variance"].abs().max() < 1e-12


@given(member_probs, st.randoms(use_true_random=False))
def test_member_scores_do_not_depend_on_the_order_of_members(probs: torch.Tensor, random) -> None:
    order = random.sample(range(len(probs)), len(probs))
    before, after = measures.member_scores(probs), measures.member_scores(probs[order])
    for name in MEMBER_KEYS:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-7)


@given(member_probs)
def test_member_scores_are_finite_where_probabilities_underflow(probs: torch.Tensor) -> None:
    classes = probs.shape[-1]
    scores = measures.member_scores(probs)
    assert all(score.isfinite().all() for score in scores.values())
    assert (scores["MI"] <= 0).all()
    assert (scores["Variance"] <= 0).all()
    assert (scores["Entropy"] >= -math.log(classes) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_member_scores_take_any_floating_type(dtype: torch.dtype) -> None:
    scores = measures.member_scores(disagreeing().to(dtype))
    assert all(score.dtype == torch.float32 for score in scores.values())
    assert scores["MI"].item() == pytest.approx(-0.3680642, abs=5e-3)


@pytest.mark.parametrize("shape", [(1, 4, 3), (4, 3)])
def test_member_scores_refuse_what_are_not_several_members(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 members, got"):
        measures.member_scores(torch.full(shape, 1 / 3))


# --- finite


@pytest.mark.parametrize("dtype", FLOATS)
def test_finite_replaces_by_the_limits_of_the_type(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    score = torch.tensor([math.nan, -math.inf, math.inf, 1.5], dtype=dtype)
    replaced = measures.finite({"s": score})["s"]
    assert replaced.dtype == dtype
    assert replaced.tolist() == [limits.min, limits.min, limits.max, 1.5]
    assert score.isnan()[0]  # the argument is left as it was


def test_finite_warns_once_with_the_counts(caplog: pytest.LogCaptureFixture) -> None:
    scores = {
        "a": torch.tensor([math.nan, math.inf, 0.0]),
        "b": torch.zeros(3),
        "c": torch.tensor([0.0, 0.0, -math.inf]),
    }
    with caplog.at_level(logging.WARNING):
        replaced = measures.finite(scores)
    assert [record.getMessage() for record in caplog.records] == [
        "replaced scores that are not finite: 2 of 3 in 'a', 1 of 3 in 'c'"
    ]
    assert list(replaced) == ["a", "b", "c"]
    assert all(score.isfinite().all() for score in replaced.values())


def test_finite_leaves_finite_scores_alone_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    scores = {"a": torch.tensor([1.0, torch.finfo(torch.float32).max])}
    with caplog.at_level(logging.WARNING):
        assert measures.finite(scores)["a"] is scores["a"]
        assert measures.finite({}) == {}
    assert not caplog.records


def test_dirichlet_scores_limits() -> None:
    """With fixed mean, more evidence leaves the total entropy and takes the distributional part away."""
    mean = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    scores = [measures.dirichlet_scores(scale * mean) for scale in (1.0, 1e2, 1e4, 1e8, 1e12)]
    mi = torch.cat([s["MI"] for s in scores])
    assert (mi <= 0).all() and (mi.diff() >= 0).all() and mi[-1] > -1e-10
    for s in scores:
        torch.testing.assert_close(s["Entropy"], scores[0]["Entropy"])
        assert (s["Expected entropy"] - s["Entropy"]).item() >= -1e-6
    flat = measures.dirichlet_scores(torch.ones(1, 5), headline="EPKL")
    assert list(flat)[0] == "EPKL"
    assert flat["EPKL"].item() == pytest.approx(-4 / 5)
    assert flat["Differential entropy"].item() == pytest.approx(torch.tensor(5.0).lgamma().item())
