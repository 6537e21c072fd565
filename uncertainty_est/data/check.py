"""Which data sets are here, and how to get the others: ``python -m uncertainty_est.data.check [name …]``."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from uncertainty_est.cli import log_to_console, one_sentence_errors
from uncertainty_est.data.card import Card, card_names, read_card
from uncertainty_est.data.card_pages import how_to_get, index, page
from uncertainty_est.data.presence import STATES, Presence, look
from uncertainty_est.errors import ConfigError, did_you_mean
from uncertainty_est.files import make_folder, write_text
from uncertainty_est.own_data import find_own

log = logging.getLogger("uncertainty_est.data.check")

SOURCES = Path(__file__).resolve().parents[2] / "configs" / "source"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m uncertainty_est.data.check",
        description="Tell which data sets are here, and how to get the others; exit code 1 if a named one is unusable.",
    )
    p.add_argument("names", nargs="*", metavar="NAME", help="data sets of configs/source/ (default: all)")
    p.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder of the files (default: $DATA_ROOT, or ../data)"
    )
    p.add_argument("--md5", action="store_true", help="compare checksums, where they are published")
    p.add_argument("--download", action="store_true", help="download what is missing, where torchvision can")
    p.add_argument("--json", action="store_true", help="tell it in JSON")
    p.add_argument(
        "--path", type=Path, metavar="PATH", help="your own folder or file: what it is, and how to train on it"
    )
    p.add_argument("--target", metavar="COLUMN", help="with --path: the column of a table that holds the classes")
    p.add_argument("--ignore", nargs="+", default=[], metavar="COLUMN", help="with --path: columns to leave out")
    p.add_argument("--write-docs", type=Path, metavar="DIR", help="write a page for every data set, and an index")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Check; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.download and not options.names:
        raise ConfigError("--download: name the data sets; all of them would be gigabytes")
    if options.path is None and (options.target or options.ignore):
        raise ConfigError("--target and --ignore: say of which table, by --path")
    log_to_console()
    if options.write_docs is not None:
        return write_docs(options.write_docs)
    if options.path is not None:
        return tell_own(options.path, options.target, options.ignore)
    root = data_root(options.data_root)
    cards = [read_card(name) for name in known(options.names, root)]
    looks = [look(card, root, options.md5) for card in cards]
    if options.download:
        looks = [download(card, root, options.md5, found) for card, found in zip(cards, looks, strict=True)]
    if options.json:
        log.info("%s", json.dumps([asdict(found) for found in looks], indent=2))
    else:
        tell(cards, looks, root, in_full=bool(options.names))
    return 1 if options.names and any(found.state != "present" for found in looks) else 0


def known(names: Sequence[str], root: Path) -> list[str]:
    """The data sets asked for, all of them if none is; those that have no files but the user's are left out.

    Raises:
        ConfigError: there is no such data set, or it is the user's own.
    """
    everything = card_names()
    for name in names:
        own = "<file or folder>" if name in everything else find_own(root, name)
        if name not in everything and own is None:
            raise ConfigError(f"there is no data set '{name}'{did_you_mean(name, everything)}")
        if name not in everything or read_card(name).obtained == "own":
            raise ConfigError(f"'{name}' stands for your own data; look into them with --path {own}")
    return list(dict.fromkeys(names)) or [name for name in everything if read_card(name).obtained != "own"]


def data_root(given: Path | None) -> Path:
    """The folder of the data sets, as a composition without ``fixed.data_root`` has it.

    Raises:
        ConfigError: the folder that was given is not there.
    """
    if given is not None and not given.is_dir():
        raise ConfigError(f"--data-root: there is no folder '{given}'")
    return given if given is not None else Path(os.environ.get("DATA_ROOT", "../data"))


def tell(cards: Sequence[Card], looks: Sequence[Presence], root: Path, in_full: bool) -> None:
    """A line for each data set, and in full what is wrong and what to do about it."""
    widths = [
        max(len(text) for text in column) for column in zip(*[(f.name, f.state, f.found) for f in looks], strict=True)
    ]
    for card, found in zip(cards, looks, strict=True):
        line = f"{found.name:{widths[0]}}  {found.state:{widths[1]}}  {found.found:{widths[2]}}"
        remedy = "" if found.state == "present" else "--download" if card.obtained == "torchvision" else card.homepage
        log.info("%s", f"{line}  {remedy}".rstrip())
        if in_full and found.state != "present":
            for problem in found.problems:
                log.info("  %s", problem)
            log.info("  %s", how_to_get(card))
    counts = Counter(found.state for found in looks)
    log.info("%s in %s", ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]), root)


def download(card: Card, root: Path, md5: bool, found: Presence) -> Presence:
    """Let the source get what is missing, and look again.

    Raises:
        DataError: it cannot be downloaded.
    """
    if card.obtained != "torchvision" or found.state == "present":
        return found
    # Here and not above: looking alone should not wait for torch.
    from omegaconf import OmegaConf

    from uncertainty_est.config import as_dict, build
    from uncertainty_est.data_names import find_source

    fixed = {"data_root": str(make_folder(root, "--data-root")), "data_shape": [3, 32, 32], "split_seed": 1}
    whole = OmegaConf.create({"fixed": fixed, "node": find_source(card.name, SOURCES, root)})
    log.info("%s: downloading", card.name)
    build(as_dict(OmegaConf.to_container(whole.node, resolve=True))).prepare()
    return look(card, root, md5)


def tell_own(path: Path, target: str | None, ignore: Sequence[str]) -> int:
    """What the user's own data set is, and what to type."""
    from uncertainty_est.data.own import describe

    own = describe(path, target, ignore)
    log.info("%s: %s", path, own.kind)
    for fact in own.facts:
        log.info("  %s", fact)
    log.info("%s", own.command(path))
    return 0


def write_docs(folder: Path) -> int:
    """A page for every card, and the index, into a folder."""
    make_folder(folder, "--write-docs")
    cards = [read_card(name) for name in card_names()]
    for card in cards:
        write_text(folder / f"{card.name}.md", page(card))
    write_text(folder / "README.md", index(cards))
    log.info("%d pages in %s", len(cards) + 1, folder)
    return 0


if __name__ == "__main__":
    with one_sentence_errors():
        raise SystemExit(main())
