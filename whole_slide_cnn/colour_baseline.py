"""Check that colour does not tell synthetic slides apart: ``python -m whole_slide_cnn.colour_baseline FOLDER``."""

import argparse
from typing import Sequence

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.synthesis.colour_baseline import check_folder, format_report


def parser() -> argparse.ArgumentParser:
    """The command line of ``colour_baseline``."""
    arguments = argparse.ArgumentParser(
        prog="python -m whole_slide_cnn.colour_baseline",
        description="Check that colour alone does not tell the classes of a synthetic data set apart.",
    )
    arguments.add_argument("folder", help="a folder written by whole_slide_cnn.synthesize")
    return arguments


def main(arguments: Sequence[str]) -> int:
    """Check a folder and print what was found; exit code 1 where colour tells the classes apart."""
    report = check_folder(parser().parse_args(arguments).folder)
    print(format_report(report))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    run_command(main)
