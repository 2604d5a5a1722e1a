"""Processes of which none may last longer than it is given, as CUDA may hang."""

import os
import signal
import subprocess
import tempfile
from typing import IO, Dict, List, NamedTuple, Optional

from tf_um_patch.options import PREFIX

_SECONDS_TO_DIE = 10


class Finished(NamedTuple):
    """What came of a process.

    Attributes:
        code: its exit code, negative for a signal; None where it was ended because it took too long.
        output: what it wrote to standard output.
        errors: what it wrote to standard error.
    """

    code: Optional[int]
    output: str
    errors: str

    def why(self, seconds: float) -> str:
        """Why it did not end well, in words."""
        if self.code is None:
            return "it was ended after {:g} s, for the card may hang: look at it with nvidia-smi".format(seconds)
        said = [line for line in self.errors.splitlines() if line.strip()]
        return "it ended with code {} and the words: {}".format(self.code, said[-1].strip() if said else "none")


def run_for(command: List[str], environment: Dict[str, str], seconds: float) -> Finished:
    """Run a command, and end it with all that it started after so many seconds."""
    # Files, not pipes: a process in the driver that cannot be ended would keep a pipe open for ever.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors, start_new_session=True)
        code = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
        return Finished(code, _text(output), _text(errors))


def bare_environment() -> Dict[str, str]:
    """This process's environment for another Python that finds this package, without a shim and its options."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment["LD_PRELOAD"] = ""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return environment


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and its children; one that hangs in the driver is left after a while."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(_SECONDS_TO_DIE)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")
