"""Cards as Markdown: a page for every data set, and an index."""

from __future__ import annotations

from collections.abc import Sequence

from uncertainty_est.data.card import OBTAINED, Card, CardFile

_GENERATED = "`python -m uncertainty_est.data.check --write-docs docs/data`"


def page(card: Card) -> str:
    """The page of a data set."""
    rows = [
        ("name", f"`{card.name}`"),
        ("items", items_of(card)),
        ("shape of an original", shape_of(card)),
        ("classes", _classes(card)),
        ("licence", card.licence),
        ("page", f"<{card.homepage}>" if card.homepage else ""),
        ("paper", card.paper),
        ("obtained", OBTAINED[card.obtained]),
    ]
    lines = [f"# {card.title}", "", card.about, "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows if value]
    if card.how or card.obtained == "torchvision":
        lines += ["", "## How to get it", "", how_to_get(card)]
    if card.layouts:
        lines += [
            "",
            "## Files",
            "",
            f"Below the data root. `python -m uncertainty_est.data.check {card.name}` checks them.",
        ]
    for number, layout in enumerate(card.layouts):
        if len(card.layouts) > 1:
            lines += ["", f"{'Or, ' if number else ''}{layout.title or 'as published'}:"]
        lines += ["", "| path | size | MD5 |", "|---|---|---|", *map(_file_row, layout.files)]
    if any(not file.needed for layout in card.layouts for file in layout.files):
        lines += ["", "\\* may be removed when it is unpacked."]
    if card.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in card.notes)]
    return "\n".join(lines) + "\n"


def index(cards: Sequence[Card]) -> str:
    """The table of all data sets."""
    lines = [
        "# Data sets",
        "",
        "What is known of every set of `configs/source/`; what we have not found out is left empty. Sizes are those of",
        f"the download. Written from `uncertainty_est/data/cards/` by {_GENERATED}.",
        "",
        "`python -m uncertainty_est.data.check` tells which of them are here, and how to get the others.",
        "",
        "| name | what | items | shape | classes | size | licence | obtained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for card in cards:
        cells = [
            f"[`{card.name}`]({card.name}.md)",
            card.title,
            f"{card.total:,}" if card.total else "",
            shape_of(card),
            _classes(card),
            _megabytes(card.download_bytes),
            card.licence,
            OBTAINED[card.obtained],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def how_to_get(card: Card) -> str:
    """What to do to have the data set, in a sentence or two."""
    if card.obtained == "torchvision":
        return (
            f"It is downloaded on first use, or ahead by `python -m uncertainty_est.data.check {card.name} --download`."
            f" A file `{card.name}.npz` in the data root (x_train, y_train, x_test, y_test) is read in its place."
        )
    return card.how + f" The page is <{card.homepage}>." * bool(card.homepage)


def items_of(card: Card) -> str:
    """Numbers of items in words."""
    return ", ".join(f"{n:,}" + f" {part}" * (part != "all") for part, n in card.items.items())


def shape_of(card: Card) -> str:
    """The shape in words."""
    return card.shape if isinstance(card.shape, str) else "x".join(map(str, card.shape))


def _classes(card: Card) -> str:
    return str(card.classes) if card.classes else "" if card.obtained == "own" else "none"


def _file_row(file: CardFile) -> str:
    size = f"{file.items:,} items" if file.items else f"{file.bytes:,} bytes" if file.bytes else ""
    return f"| `{file.path}`{'' if file.needed else ' *'} | {size} | {f'`{file.md5}`' if file.md5 else ''} |"


def _megabytes(size: int) -> str:
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{max(size / 1e6, 0.1):.1f} MB" if size else ""
