"""Runs that differ only in seed as the members of an ensemble, from their saved answers: no further forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uncertainty_est import measures
from uncertainty_est.errors import DataError
from uncertainty_est.evaluation.aggregate import experiment_of
from uncertainty_est.evaluation.scoring import Scored, ScoredRun
from uncertainty_est.evaluation.tables import RunInfo


@dataclass(frozen=True)
class Member:
    """A run with classes that was scored.

    Attributes:
        info: what its rows say of it.
        fixed: its resolved configuration.
        scores: the ``.npz`` of its answers, as :func:`~uncertainty_est.evaluation.scoring.save_scores` wrote it.
    """

    info: RunInfo
    fixed: Mapping[str, Any]
    scores: Path


def group_members(members: Iterable[Member]) -> list[list[Member]]:
    """Runs of one experiment side by side, as aggregates group them; of runs made alike to the seed only the first."""
    groups: dict[str, dict[str, Member]] = {}
    for member in members:
        # A repeated command gives the same weights again, which is no second opinion.
        origin = repr((member.fixed.get("seed"), member.fixed.get("init_from")))
        groups.setdefault(experiment_of(member.fixed), {}).setdefault(origin, member)
    return [list(group.values()) for group in groups.values()]


def names_of(members: Sequence[Member]) -> tuple[RunInfo, dict[str, Any]]:
    """What stands in rows and aggregates where a run's own names and configuration would.

    An ensemble is called after its first member. Its seed is a text that joins those of its members; config entries
    in which they differ are NaN.
    """
    first, fixed = members[0].info, members[0].fixed
    info = replace(
        first,
        model=f"{fixed['model']}-{fixed['dataset']}-ensemble{len(members)}",
        model_type=f"Ensemble of {first.model_type}",
        seed="+".join(str(member.info.seed) for member in members),
        run=f"{first.run}-ensemble{len(members)}",
        entries={
            name: value if all(member.info.entries[name] == value for member in members) else float("nan")
            for name, value in first.entries.items()
        },
    )
    seeds = [member.info.seed for member in members]
    return info, {**fixed, "model": f"{fixed['model']} (ensemble)", "seed": seeds}


def combine(members: Sequence[Member]) -> ScoredRun:
    r"""Answers of the ensemble, :math:`\bar p = \tfrac1M \sum_m p_m`, scored as a deep ensemble's.

    The scores are :func:`~uncertainty_est.measures.member_scores`. The members' own scores are not averaged: their
    units differ from member to member. OOD sets that a member was not scored on, or on other inputs, are in ``failed``.
    One data set's probabilities ``[M, N, C]`` are in memory at a time.

    References:
        Lakshminarayanan et al., arXiv:1612.01474, section 2.4.

    Args:
        members: at least 2, all with class probabilities.

    Raises:
        DataError: they were scored on in-distribution inputs with other labels.
    """
    archives = [np.load(member.scores, allow_pickle=False) for member in members]
    try:
        id_data = _combined("id", members, archives)
        ood: dict[str, Scored] = {}
        failed: dict[str, str] = {}
        for name in _ood_sets(archives):
            try:
                ood[name] = _combined(name, members, archives)
            except DataError as error:
                failed[name] = str(error)
    finally:
        for archive in archives:
            archive.close()
    return ScoredRun(id_data, ood, failed)


def _ood_sets(archives: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """All that any member was scored on, in the order of the files."""
    keys = dict.fromkeys(key for archive in archives for key in archive)
    return [key.removesuffix("/labels") for key in keys if key.endswith("/labels") and key != "id/labels"]


def _combined(name: str, members: Sequence[Member], archives: Sequence[Mapping[str, np.ndarray]]) -> Scored:
    labels = [archive.get(f"{name}/labels") for archive in archives]
    first = labels[0]
    for member, own in zip(members, labels, strict=True):
        if own is None or first is None:
            raise DataError(f"not all members were scored on '{name}'")
        if not np.array_equal(first, own):
            where = "the in-distribution test set" if name == "id" else f"'{name}'"
            raise DataError(
                f"{member.info.run} and {members[0].info.run} were scored on other inputs of {where}, so they make no"
                f" ensemble; give both the same --batch-size, or leave --max-eval out"
            )
    assert first is not None  # `members` is not empty
    probs = torch.from_numpy(np.stack([archive[f"{name}/probs"] for archive in archives])).double()
    scores = {score: values.double().numpy() for score, values in measures.member_scores(probs).items()}
    return Scored(first, probs.mean(0).numpy(), scores)
