"""What all commands share: one clear sentence for a user's mistake, an exit code, no traceback."""

import logging
import os
import sys
import warnings

from whole_slide_cnn.errors import Interrupted, WholeSlideError

EXIT_USER_ERROR = 2
EXIT_SIGNAL = 128  # plus the number of the signal, as shells have it: 130 for SIGINT, 143 for SIGTERM
EXIT_INTERRUPTED = 130


def run_command(main, arguments=None):
    """Call ``main(arguments)`` and exit the process with its return value (None counts as 0).

    Errors of :class:`WholeSlideError` become ``error: <sentence>`` on standard error and exit code 2. A command that a
    signal ended says so there, and exits with 128 plus the signal's number.
    """
    warnings.showwarning = _show_warning
    _quiet_tensorflow()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without Unicode shall not break a run over a unit's sign
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(sys.argv[1:] if arguments is None else arguments)
    except WholeSlideError as error:
        print("error: {}".format(error), file=sys.stderr)
        code = EXIT_USER_ERROR
    except Interrupted as stop:
        if str(stop):  # one of several processes says it for all
            print(stop, file=sys.stderr)
        code = EXIT_SIGNAL + stop.signal
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code or 0)


def _quiet_tensorflow():
    """TensorFlow's notices at its start and its deprecation warnings hide what a command says; its errors stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def _show_warning(message, category, filename, lineno, file=None, line=None):
    print("warning: {}".format(message), file=sys.stderr)
