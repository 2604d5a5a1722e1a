"""The commands ``record`` and ``compare``."""

import argparse
import sys

from . import __doc__ as purpose
from .comparing import compare
from .files import NumbersError
from .recording import record


def _parser():
    parser = argparse.ArgumentParser("same_numbers", description=purpose.splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="{record,compare}")
    commands.required = True
    recorder = commands.add_parser("record", help="record what a checkout computes")
    recorder.add_argument("--checkout", required=True, metavar="FOLDER", help="the checkout")
    recorder.add_argument("--python", required=True, metavar="PATH", help="the Python of an environment for it")
    recorder.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder to write; earlier items are replaced"
    )
    recorder.add_argument(
        "--only", nargs="+", metavar="NAME", help="items, such as training or 'plans/host*'; default: all"
    )
    recorder.add_argument(
        "--before", metavar="RECORD", help="record of an earlier checkout whose runs and plans to use"
    )
    recorder.add_argument(
        "--goldens", nargs="+", default=[], metavar="FILE", help="results of the published implementation"
    )
    recorder.set_defaults(run=record)
    comparer = commands.add_parser("compare", help="compare two records")
    comparer.add_argument("before", metavar="BEFORE", help="a record")
    comparer.add_argument("after", metavar="AFTER", help="a record")
    comparer.add_argument("--only", nargs="+", metavar="NAME", help="items to compare; default: all")
    comparer.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a key, or words of a text, and what they are after; may be repeated",
    )
    comparer.add_argument(
        "--added",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that is new, and not compared; may be repeated",
    )
    comparer.set_defaults(run=compare)
    return parser


def main(arguments=None) -> int:
    """Run one of the commands; returns the exit code. Errors of the input are one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except NumbersError as error:
        print("error: {}".format(error), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
