"""The arguments by which commands name a checkpoint."""

from __future__ import annotations

import argparse


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL, --revision and --tokenizer."""
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's directory, or the id of one on the hub")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="a directory with tokenizer and configs, for a checkpoint that has none"
    )
