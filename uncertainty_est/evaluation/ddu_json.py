"""Results in the form in which DDU's own evaluation saves them: a file for each experiment, score pair and OOD set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uncertainty_est.evaluation.aggregate import RunTables, aggregate, experiments
from uncertainty_est.evaluation.scoring import SCALED

# By DDU's name of a pair: its two scores, each with the AUPR of DDU's positive class. That is the ID set for
# confidences (densities, log-sum-exp) and the OOD set for uncertainties (entropies, mutual information).
PAIRS = {
    "gmm": (("gmm_log_density", "AUPR-IN"), ("gmm_entropy", "AUPR-OUT")),
    "softmax": (("p(x)", "AUPR-IN"), ("Entropy", "AUPR-OUT")),
    "ensemble": (("MI", "AUPR-OUT"), ("Entropy", "AUPR-OUT")),
}
# What only averages over members have beside the ensemble's pair; Dirichlet methods have an MI of their own.
_OF_MEMBERS = "Variance"


def ddu_results(runs: Sequence[RunTables]) -> dict[str, dict[str, Any]]:
    """Contents of all files by their names, ``res_<network>[_sn_<coeff>][_mod]_<seed>_<pair>_<ID set>_<OOD set>.json``.

    ``mean``, ``std`` and ``values`` (of each run) have the same keys, as fractions: ``accuracy``, ``ece`` (15 bins),
    ``m1_auroc``, ``m1_auprc``, ``m2_auroc``, ``m2_auprc``, and ``t_ece``, ``t_m1_…``, ``t_m2_…`` after temperature
    scaling, ``null`` where that was not asked for. ``std`` is the standard error, ``null`` of a single run. m1 and m2
    are the two scores of :data:`PAIRS`; those of ``gmm`` know no temperature. ``info`` tells what was evaluated; its
    seeds are those of the values, the file's is the first one. Where experiments would share a name, the later ones'
    have a number at the end.

    References:
        Mukhoti et al., arXiv:2102.11582; the evaluation that its authors published.

    Args:
        runs: tables of runs and ensembles, in percent. Those without classes, or without such a pair, give no file.
    """
    files: dict[str, dict[str, Any]] = {}
    for members in experiments(runs):
        (entry,) = aggregate(members)
        table, fixed = members[0].ood, members[0].fixed
        if "Accuracy" not in entry["mean"] or not len(table):
            continue
        network = network_name(fixed)
        first_seed = str(entry["info"]["seeds"][0]).strip("[]").split(",")[0]
        known = set(table["Score"])
        for ood in table.loc[table["Group"] != "mean", "OOD dataset"].unique():
            for pair, scores in PAIRS.items():
                if not {score for score, _ in scores} <= known or (pair == "ensemble" and _OF_MEMBERS not in known):
                    continue
                info = {**entry["info"], "network": network, "type": pair, "ood_dataset": ood}
                stem = f"res_{network}_{first_seed}_{pair}_{fixed['dataset']}_{ood}"
                number = sum(name.split("#")[0] == stem for name in files) + 1
                files[f"{stem}#{number}"] = _content(entry, _columns(pair, ood)) | {"info": info}
    return {name.removesuffix("#1").replace("#", "_") + ".json": content for name, content in files.items()}


def network_name(fixed: Mapping[str, Any]) -> str:
    """The network of a run as DDU names it, ``resnet18_sn_3.0_mod``; other wide networks with depth and factor."""
    node = fixed["model_config"].get("network") or {}
    name = str(node.get("_target_", fixed["model"])).rsplit(".", 1)[-1].lower()
    if name == "resnet":
        name += str(node["depth"])
    elif name == "wideresnet":
        size = (node["depth"], node["widen_factor"])
        name = "wide_resnet" + ("" if size == (28, 10) else "_{}_{}".format(*size))
    if "coeff" in (node.get("layers") or {}):
        name += f"_sn_{float(node['layers']['coeff'])}"
    return name + ("_mod" if node.get("mod") else "")


def _columns(pair: str, ood: str) -> dict[str, str]:
    """DDU's keys to the names of aggregates."""
    columns = {"accuracy": "Accuracy", "ece": "ECE", "t_ece": f"{SCALED}ECE"}
    for number, (score, auprc) in enumerate(PAIRS[pair], 1):
        for mark in ("", SCALED):
            of_score = f"{ood}/{'' if pair == 'gmm' else mark}{score}"
            columns[f"{mark}m{number}_auroc"] = f"{of_score}/AUROC"
            columns[f"{mark}m{number}_auprc"] = f"{of_score}/{auprc}"
    return columns


def _content(entry: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Fractions of an aggregate's percents; what it has not is ``None``."""

    def of(kind: str) -> dict[str, float | None]:
        numbers = {key: entry[kind].get(name) for key, name in columns.items()}
        return {key: None if value is None else value / 100 for key, value in numbers.items()}

    values = {key: entry["values"].get(name) for key, name in columns.items()}
    fractions = {key: None if runs is None else [value / 100 for value in runs] for key, runs in values.items()}
    return {"mean": of("mean"), "std": of("standard_error"), "values": fractions}
