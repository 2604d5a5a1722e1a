"""The commands of this package: ``python -m tf_um_patch run``, ``doctor`` and ``gpu-check``."""

import sys
from typing import List

from tf_um_patch import doctor, launch
from tf_um_patch.errors import UnifiedMemoryError
from tf_um_patch.gpu_check import command as gpu_check

COMMANDS = {"run": launch.main, "doctor": doctor.main, "gpu-check": gpu_check.main}
USAGE = """usage: python -m tf_um_patch run [options] -- COMMAND
       python -m tf_um_patch doctor [--json]
       python -m tf_um_patch gpu-check [options]

Device memory that may exceed the device. Each command has --help."""
EXIT_USER_ERROR = 2


def main(arguments: List[str]) -> int:
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
