"""Published figures of Posterior Networks and of Segment's table beside ours, as Markdown.

    python benchmarks/published.py --data-root ../data [--seeds 10] [--jobs 2] [--only TABLE] --output docs/published.md

Every row is trained with the protocol that its figure was published with, once for each seed. Finished runs below
``--runs`` are not trained again, so that an interrupted call can be repeated. A difference that two standard errors of
both sides do not cover (of a single published run: two standard deviations of ours) is marked with "!".
"""

from __future__ import annotations

import math
import sys
from typing import Any

from protocol import Row, Table, arguments_of, mean_and_error, results_of_tables, write

ROUNDING = 0.05  # of the listed figures

# What was found where a listed figure and ours differ, or did.
NOTES = """## Notes

- Segment's figures of the thesis' protocol depend on when training stops. By validation accuracy after every epoch
  (four steps), as there, cross-entropy's accuracy is the listed one within errors; by validation loss every tenth
  epoch it is 96.5.
- PostNet's authors stop where the loss of ten validations ago is the least of the last ten, which hardly ever
  happens. With the usual patience of ten validations most runs end too early (accuracy 92, sky AUROC 40 to 92 over
  three seeds).
- MC dropout on Segment is more accurate here (95.6 against 92.9). It is 95.3 with masks of its own for each input
  and 90.2 with a single pass, so neither tells why; a patience of four ends two of six runs before they have
  learned anything.
- The ensemble's mutual information on Sensorless (46 against 58) is not explained; its accuracy agrees.
- Methods that train on uniform noise are not tested on it, so the listed figures of that column have no
  counterpart.
- The authors' five checkpoints were evaluated on rows that include their training rows, ours on test rows only.
- AUPR depends on the shares of the two sets, here 396 ID rows to 330 of sky in PostNet's protocol, as published.
"""

POSTNET = [
    "model=fc_postnet",
    "fixed.batch_size=64",
    "fixed.trainer_config.max_epochs=200",
    "fixed.trainer_config.check_val_every_n_epoch=2",
    "fixed.trainer_config.max_steps=-1",
    "fixed.earlystop_config=null",  # the original's rule hardly ever ends a run before
]
MIXTURE = [
    "~fixed.model_config.density.num_layers",
    "fixed.model_config.density._target_=uncertainty_est.densities.mixture.GaussianMixtures",
]
# PostNet's splits change with the seed, the thesis has one for all.
SPLIT_20_20 = ["+fixed.sources.{id}.val_fraction=0.2", "+fixed.sources.{id}.test_fraction=0.2"]
WHOLE_OOD = ["+fixed.sources.{ood}.val_fraction=0.0", "+fixed.sources.{ood}.test_fraction=1.0"]
# A set that a method trains on is none that it is tested on: these rows have no column of uniform noise.
OUTLIERS = [
    "fixed.ood_dataset=uniform_noise",
    "fixed.test_ood_datasets=[segment_ood,gaussian_noise,constant,segment_ood_unscaled]",
]
# The figures stem from stopping by validation accuracy, looked at after every epoch of four steps: many runs are short.
STOP_BY_ACCURACY = [
    "fixed.trainer_config.check_val_every_n_epoch=1",
    "fixed.checkpoint_config.monitor=val/acc",
    "fixed.checkpoint_config.mode=max",
    "fixed.earlystop_config.monitor=val/acc",
    "fixed.earlystop_config.mode=max",
]
THESIS = [
    "fixed.test_ood_datasets=[segment_ood,gaussian_noise,constant,segment_ood_unscaled,uniform_noise]",
    *STOP_BY_ACCURACY,
]
FINE_TUNING = [
    "fixed.trainer_config.max_steps=600",
    "fixed.checkpoint_config.monitor=null",
    "fixed.checkpoint_config.mode=min",
    "fixed.earlystop_config=null",
]


def ood_columns(name: str, scores: list[str], metrics: list[str]) -> list[str]:
    return [f"{name} / {score} / {metric}" for score in scores for metric in metrics]


ALEA, EPIST = "max p(y|x)", "log alpha0"
CONFIDENCE = ["Accuracy", "Confidence APR alea", "Confidence APR epist", "Brier L2"]


def postnet_columns(ood: str) -> list[str]:
    return [
        *CONFIDENCE,
        *ood_columns(ood, [ALEA, EPIST], ["AUROC", "AUPR-IN", "AUPR-OUT"]),
    ]


def figures(ood: str, **values: Any) -> dict[str, tuple[float, float | None]]:
    """Listed figures by short names: acc, conf_a, conf_e, brier, then (auroc|in|out)_(a|e)."""
    names = {
        "acc": "Accuracy",
        "conf_a": "Confidence APR alea",
        "conf_e": "Confidence APR epist",
        "brier": "Brier L2",
    }
    for short, score in (("a", ALEA), ("e", EPIST)):
        for key, metric in (("auroc", "AUROC"), ("in", "AUPR-IN"), ("out", "AUPR-OUT")):
            names[f"{key}_{short}"] = f"{ood} / {score} / {metric}"
    return {names[key]: value if isinstance(value, tuple) else (value, None) for key, value in values.items()}


def thesis_figures(score: str, acc: tuple[float, float] | None, *values: Any) -> dict[str, tuple[float, float | None]]:
    """Listed AUROC of one score on constant, Gaussian noise, sky, sky x 255 and uniform noise."""
    sets = ["constant", "gaussian_noise", "segment_ood", "segment_ood_unscaled", "uniform_noise"]
    listed: dict[str, tuple[float, float | None]] = {} if acc is None else {"Accuracy": acc}
    for name, value in zip(sets, values, strict=True):
        listed[f"{name} / {score} / AUROC"] = value if isinstance(value, tuple) else (value, None)
    return listed


THESIS_COLUMNS = [
    "Accuracy",
    *(
        f"{name} / {score} / AUROC"
        for score in ("max p(y|x)", "p(x)", "MI", "Entropy", "Variance", "log alpha0")
        for name in ("constant", "gaussian_noise", "segment_ood", "segment_ood_unscaled", "uniform_noise")
    ),
]

TABLES = [
    Table(
        "gaussian2d",
        "Two-dimensional Gaussians against the anomalous ring",
        "gaussian2d_file",
        "anomalous_gaussian2d_file",
        postnet_columns("anomalous_gaussian2d_file"),
        [
            Row(
                "PostNet, 6 radial layers (authors' notebook)",
                [*POSTNET, *SPLIT_20_20, *WHOLE_OOD],
                figures(
                    "anomalous_gaussian2d_file",
                    acc=100.0,
                    conf_a=100.0,
                    conf_e=100.0,
                    brier=0.0539,
                    in_a=100.0,
                    in_e=100.0,
                    auroc_a=100.0,
                    auroc_e=100.0,
                ),
            )
        ],
        needs="gaussian2d/2DGaussians-0.2.csv",
    ),
    Table(
        "segment_postnet",
        "Segment without sky, PostNet's protocol (60/20/20, another split for each seed)",
        "segment",
        "segment_ood",
        [*postnet_columns("segment_ood"), f"segment_ood_unscaled / {EPIST} / AUROC"],
        [
            Row(
                "PostNet, 6 radial layers (reference implementation, 5 seeds)",
                [*POSTNET, *SPLIT_20_20, *WHOLE_OOD],
                figures(
                    "segment_ood",
                    acc=(96.16, 0.35),
                    conf_a=(99.48, 0.23),
                    conf_e=(98.73, 0.53),
                    brier=(9.04, 0.82),
                    auroc_a=(90.29, 3.35),
                    auroc_e=(88.83, 5.61),
                    in_a=(92.42, 2.67),
                    in_e=(89.94, 4.70),
                    out_a=(87.12, 4.83),
                    out_e=(88.17, 6.11),
                )
                | {f"segment_ood_unscaled / {EPIST} / AUROC": (100.0, 0.0)},
            ),
            Row(
                "PostNet, mixture of 6 Gaussians (authors' notebook, one run)",
                [*POSTNET, *MIXTURE, *SPLIT_20_20, *WHOLE_OOD],
                figures("segment_ood", acc=97.727, conf_a=99.907, conf_e=99.880, brier=7.923, in_a=95.438, in_e=96.319),
            ),
        ],
        needs="segment",
    ),
    Table(
        "segment_five",
        "Segment without window and sky (five classes), PostNet's protocol",
        "segment",
        "segment_ood",
        [
            "Accuracy",
            *ood_columns("segment_ood", [ALEA, EPIST], ["AUROC", "AUPR-IN"]),
            *ood_columns("segment_window", [ALEA, EPIST], ["AUROC", "AUPR-IN"]),
            f"segment_ood_unscaled / {EPIST} / AUROC",
        ],
        [
            Row(
                "PostNet, 6 radial layers (authors' five checkpoints, ID side includes training rows)",
                [
                    *POSTNET,
                    *SPLIT_20_20,
                    *WHOLE_OOD,
                    "+fixed.sources.segment.classes=[0,1,2,4,5]",
                    "fixed.num_classes=5",
                    "fixed.test_ood_datasets=[segment_ood,segment_window,segment_ood_unscaled]",
                    "+fixed.sources.segment_window.val_fraction=0.0",
                    "+fixed.sources.segment_window.test_fraction=1.0",
                ],
                figures(
                    "segment_ood", auroc_a=(98.79, 0.36), auroc_e=(98.26, 0.60), in_a=(98.92, 0.39), in_e=(98.15, 0.82)
                )
                | figures(
                    "segment_window",
                    auroc_a=(85.47, 0.97),
                    auroc_e=(80.24, 1.48),
                    in_a=(80.48, 1.10),
                    in_e=(73.94, 1.44),
                )
                | {f"segment_ood_unscaled / {EPIST} / AUROC": (99.98, 0.02)},
            )
        ],
        needs="segment",
    ),
    Table(
        "segment_thesis",
        "Segment without sky, the thesis' protocol (80/10/10, one split for all seeds)",
        "segment",
        "segment_ood",
        THESIS_COLUMNS,
        [
            Row(
                "Cross-entropy",
                ["model=fc_ce_baseline"],
                thesis_figures(
                    "max p(y|x)", (93.94, 0.60), (25.4, 9.7), (33.0, 4.1), (11.2, 2.4), (0.1, 0.0), (13.5, 2.5)
                )
                | thesis_figures("p(x)", None, (22.6, 9.5), (27.5, 3.2), (12.9, 4.9), 0.0, (5.8, 1.7)),
                new_splits=False,
            ),
            Row(
                "MC dropout",
                ["model=fc_mc_dropout"],
                thesis_figures(
                    "Entropy", (92.93, 0.68), (70.3, 6.6), (56.0, 0.9), (19.9, 3.8), (36.4, 8.4), (48.7, 2.2)
                )
                | thesis_figures("Variance", None, (89.1, 2.6), (75.9, 1.3), (35.5, 6.4), (73.5, 14.6), (71.8, 1.0)),
                new_splits=False,
            ),
            Row(
                "Deep ensemble of 5",
                ["model=fc_deep_ensemble"],
                thesis_figures("MI", (95.35, 0.19), (88.0, 6.8), (80.0, 2.4), (24.5, 6.5), (52.8, 19.1), (74.2, 3.5))
                | thesis_figures("Entropy", None, (78.5, 7.7), (69.1, 2.5), (15.7, 3.6), (40.9, 14.8), (64.2, 3.4))
                | thesis_figures("Variance", None, (85.3, 7.8), (78.0, 2.5), (20.1, 5.2), (52.8, 19.0), (73.3, 3.7)),
                new_splits=False,
            ),
            Row(
                "Outlier exposure from the cross-entropy run (uniform outliers)",
                ["model=fc_energy_finetuning_oe", *OUTLIERS, *FINE_TUNING],
                thesis_figures("max p(y|x)", (94.55, 1.19), (98.6, 0.5), (99.8, 0.0), (64.7, 12.8), (59.8, 12.8), 100.0)
                | thesis_figures("p(x)", None, (98.8, 0.5), 100.0, (62.4, 13.5), (26.4, 9.8), 100.0),
                new_splits=False,
                starts_from=0,
            ),
            Row(
                "Energy fine-tuning from the cross-entropy run (uniform outliers)",
                ["model=fc_energy_finetuning", *OUTLIERS, *FINE_TUNING],
                thesis_figures(
                    "max p(y|x)", (93.84, 0.67), (85.7, 4.3), (93.4, 3.3), (45.5, 5.7), (6.7, 4.1), (86.4, 4.7)
                )
                | thesis_figures("p(x)", None, (98.8, 0.8), 100.0, (82.9, 15.0), (79.7, 19.9), 100.0),
                new_splits=False,
                starts_from=0,
            ),
            Row(
                "Prior Network (uniform outliers)",
                ["model=fc_priornet", *OUTLIERS],
                thesis_figures("MI", (93.03, 2.88), (97.1, 1.1), (99.7, 0.3), (94.8, 4.4), (99.6, 0.3), 100.0)
                | thesis_figures("max p(y|x)", None, (94.5, 1.8), (98.7, 0.8), (82.0, 8.8), (99.6, 0.3), (99.9, 0.1)),
                new_splits=False,
            ),
            Row(
                "PostNet (latent 10, 8 radial layers)",
                [
                    "model=fc_postnet",
                    "fixed.model_config.network.num_classes=10",
                    "fixed.model_config.network.hidden_dims=[100,100,100,100,100]",
                    "fixed.model_config.density.num_layers=8",
                    "fixed.trainer_config.check_val_every_n_epoch=10",
                    "fixed.checkpoint_config.monitor=val/loss",
                    "fixed.checkpoint_config.mode=min",
                    "fixed.earlystop_config.monitor=val/loss",
                    "fixed.earlystop_config.mode=min",
                    "fixed.earlystop_config.patience=20",
                ],
                new_splits=False,
            ),
        ],
        needs="segment",
        common=THESIS,
    ),
    Table(
        "sensorless",
        "Sensorless Drive, classes 10 and 11 left out (60/20/20; 200 rows a class where only the subset is there)",
        "sensorless",
        "sensorless_ood",
        [
            *postnet_columns("sensorless_ood"),
            *(f"sensorless_ood / {score} / AUROC" for score in ("p(x)", "MI")),
            f"sensorless_ood_unscaled / {EPIST} / AUROC",
        ],
        [
            Row(
                "PostNet, 6 radial layers (reference implementation, subset)",
                [*POSTNET, *SPLIT_20_20, *WHOLE_OOD],
                figures(
                    "sensorless_ood",
                    acc=(93.44, 1.10),
                    auroc_a=(75.29, 1.19),
                    auroc_e=(80.93, 0.95),
                    in_a=(69.37, 0.82),
                    in_e=(77.03, 1.00),
                )
                | {f"sensorless_ood_unscaled / {EPIST} / AUROC": (99.89, 0.11)},
            ),
            Row(
                "Cross-entropy (reference implementation, subset)",
                ["model=fc_ce_baseline", *STOP_BY_ACCURACY, *SPLIT_20_20, *WHOLE_OOD],
                {
                    "Accuracy": (93.39, 0.42),
                    f"sensorless_ood / {ALEA} / AUROC": (46.38, 6.11),
                    f"sensorless_ood / {ALEA} / AUPR-IN": (49.47, 5.47),
                    "sensorless_ood / p(x) / AUROC": (12.70, 0.88),
                },
            ),
            Row(
                "Deep ensemble of 5 (reference implementation, subset)",
                ["model=fc_deep_ensemble", *STOP_BY_ACCURACY, *SPLIT_20_20, *WHOLE_OOD],
                {"Accuracy": (94.89, 0.37), "sensorless_ood / MI / AUROC": (57.64, 3.21)},
            ),
        ],
        needs="sensorless",
    ),
    Table(
        "sensorless_full",
        "Sensorless Drive, the published file, PostNet's protocol",
        "sensorless",
        "sensorless_ood",
        postnet_columns("sensorless_ood"),
        [
            Row(
                "PostNet, 6 radial layers, lr 3e-5 (authors' notebook)",
                [*POSTNET, *SPLIT_20_20, *WHOLE_OOD, "fixed.model_config.optimizer.lr=3e-5"],
                figures(
                    "sensorless_ood", acc=97.368, conf_a=99.860, conf_e=99.444, brier=8.215, in_a=79.183, in_e=93.155
                ),
            )
        ],
        needs="sensorless/Sensorless_drive_diagnosis.txt",
    ),
]


def markdown(table: Table, results: list[list[dict[str, float]]]) -> str:
    """One line a method and number: listed, ours, and the range over seeds."""
    lines = [
        f"## {table.title}",
        "",
        "| method | number | listed | ours | range over seeds | |",
        "|---|---|---|---|---|---|",
    ]
    for row, runs in zip(table.rows, results, strict=True):
        for column in table.columns:
            values = [numbers[column] for numbers in runs if column in numbers]
            if not values:
                continue
            mean, error = mean_and_error(values)
            listed, mark = "–", ""
            if column in row.listed:
                value, listed_error = row.listed[column]
                listed = f"{value:.2f}" + ("" if listed_error is None else f" ± {listed_error:.2f}")
                # A single published run spreads as one of ours does, a published mean as its own error says.
                spread = math.sqrt(len(values)) * error if listed_error is None else math.hypot(error, listed_error)
                mark = "!" if abs(mean - value) > 2 * spread + ROUNDING else "ok"
            name = column.replace("|", "\\|")
            ours, extent = f"{mean:.2f} ± {error:.2f}", f"{min(values):.2f} to {max(values):.2f}"
            lines.append(f"| {row.label} | {name} | {listed} | {ours} | {extent} | {mark} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    arguments = arguments_of(str(__doc__), TABLES, seeds=10, runs="runs/published")
    results = results_of_tables(TABLES, arguments)
    texts = [f"Mean ± standard error over {arguments.seeds} seeds; percent; Brier as mean L2 norm times 100.\n"]
    for table in TABLES:
        if table.name in results:
            rows = results[table.name]
            missing = f"## {table.title}\n\nNot run: {table.needs} is not in the data folder.\n"
            texts.append(missing if rows is None else markdown(table, rows))
    body = "\n".join(texts)
    compared, outside = body.count("| ok |") + body.count("| ! |"), body.count("| ! |")
    write(
        f"# Published figures beside ours\n\nOf {compared} compared numbers {outside} lie outside of two standard"
        f" errors (marked with !); one in twenty does by chance.\n\n{body}\n{NOTES}",
        arguments.output,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
