"""Cross-entropy classifier: loss, scores and their invariances, and what the base class promises."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Batch, scoring_mode
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.fc import FC


def test_loss_is_lse_minus_the_true_logit(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    logits = network(x)
    expected = (logits.logsumexp(-1) - logits[torch.arange(len(y)), y]).mean()
    torch.testing.assert_close(CEBaseline(network).loss({"id": (x, y)})["ce"], expected)


def test_gradient_with_respect_to_logits_is_softmax_minus_one_hot(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    CEBaseline(network).loss({"id": (x, y)})["ce"].backward()
    probs = network(x).softmax(-1)
    expected = (probs - nn.functional.one_hot(y, 4)).mean(0)
    torch.testing.assert_close(network.head.bias.grad, expected)


def test_scores_of_shifted_logits(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    x, _ = batch
    method = CEBaseline(network)
    before = method.get_ood_scores(x)
    with torch.no_grad():
        network.head.bias += 2.5  # every logit shifts by the same constant
    after = method.get_ood_scores(x)
    torch.testing.assert_close(after["max p(y|x)"], before["max p(y|x)"])
    torch.testing.assert_close(after["Entropy"], before["Entropy"])
    torch.testing.assert_close(after["p(x)"], before["p(x)"] + 2.5)


def test_validation_and_prediction_agree(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    method = CEBaseline(network)
    with scoring_mode(method):
        parts, probs = method.validate_batch({"id": (x, y)})
        torch.testing.assert_close(parts["ce"], method.loss({"id": (x, y)})["ce"])
    torch.testing.assert_close(probs, method.classify(x))


def test_one_pass_yields_probabilities_and_all_scores(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    seen = []
    network.head.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    CEBaseline(network).predict(batch[0])
    assert seen == [40]


def test_non_finite_scores_are_replaced(
    network: FC, batch: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():
        network.head.bias[0] = torch.inf
    scores = CEBaseline(network).get_ood_scores(batch[0])
    assert all(score.isfinite().all() for score in scores.values())
    assert caplog.records, "a silent replacement would hide divergence"


def test_scoring_mode_restores_after_an_error(network: FC) -> None:
    network.train()
    with pytest.raises(KeyError), scoring_mode(network):
        assert not network.training
        raise KeyError
    assert all(m.training for m in network.modules())
    assert torch.is_grad_enabled()


def test_training_without_an_optimizer_is_a_config_error(network: FC) -> None:
    with pytest.raises(ConfigError, match="optimizer"):
        CEBaseline(network).configure_optimizers()


def test_init_from_takes_every_weight(network: FC) -> None:
    other = CEBaseline(FC(data_shape=[3], num_classes=4, hidden_dims=[16, 16]))
    method = CEBaseline(network)
    method.init_from([other.state_dict()])
    for key, value in other.state_dict().items():
        assert torch.equal(method.state_dict()[key], value)
    with pytest.raises(ConfigError, match="no place for the run's weight 'members.0'"):
        method.init_from([{**other.state_dict(), "members.0": torch.zeros(1)}])


def test_notes_are_logged_beside_the_loss_when_loggers_write(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    class Noting(CEBaseline):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            parts = super().loss(batch)
            self.note({"twice": 2 * parts["ce"]})
            return parts

    method = Noting(network)
    writing = SimpleNamespace(should_update_logs=False)
    method._trainer = SimpleNamespace(  # type: ignore[assignment]
        _logger_connector=writing, num_training_batches=5, val_check_batch=5, check_val_every_n_epoch=1
    )
    logged: dict[str, Tensor] = {}
    method.log_dict = lambda values, **_: logged.update(values)  # type: ignore[assignment,method-assign]
    method.training_step({"id": batch}, 0)
    assert not logged
    method.validation_step({"id": batch}, 0)
    assert set(logged) == {"val/loss", "val/acc"}
    logged.clear()
    method.training_step({"id": batch}, 4)  # the last of the epoch
    assert set(logged) == {"train/twice", "train/loss"}
    logged.clear()
    writing.should_update_logs = True
    loss = method.training_step({"id": batch}, 1)
    assert logged["train/loss"].item() == loss.item()
    assert logged["train/twice"].item() == pytest.approx(2 * loss.item())
    assert not logged["train/twice"].requires_grad and not logged["train/loss"].requires_grad
