"""The commands of this package: ``python -m tf_um_patch run`` and ``python -m tf_um_patch doctor``."""

import sys

from tf_um_patch import doctor, launch
from tf_um_patch.errors import UnifiedMemoryError

COMMANDS = {"run": launch.main, "doctor": doctor.main}
USAGE = """usage: python -m tf_um_patch run [options] -- COMMAND
       python -m tf_um_patch doctor [--json]

Device memory that may exceed the device. Each command has --help."""
EXIT_USER_ERROR = 2


def main(arguments):
    """Run a command and return its exit code; errors are one sentence on standard error and code 2."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        print(USAGE, file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except UnifiedMemoryError as error:
        print("error: {}".format(error), file=sys.stderr)
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
