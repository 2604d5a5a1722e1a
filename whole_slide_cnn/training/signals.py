"""SIGINT, SIGTERM and SIGUSR1 as a wish to stop: what is being computed is finished and saved first."""

import os
import signal
import threading
from typing import Any, Callable, Dict, Optional

# Slurm sends the one it is asked to (sbatch --signal), some time before the end. Open MPI's launcher passes SIGUSR1 on
# to all processes; on the other two it ends them itself.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """While entered, the first of these signals is only noted, and the second one ends the process at once.

    A signal that was ignored stays so, as of a run that was started with ``nohup`` or in the background. Outside the
    main thread, where Python lets nobody handle signals, nothing happens.

    Attributes:
        received: the number of the first signal, or None.

    Args:
        report: called with a sentence when the first signal arrives, from a thread of its own.
    """

    def __init__(self, report: Callable[[str], None]):
        self.received: Optional[int] = None
        self._report = report
        self._handlers: Dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # None: somebody's who is not Python
                self._handlers[number] = handler
                signal.signal(number, lambda number, frame: None)
        # Python calls a handler only between two of its instructions, and a graph may compute for minutes within one.
        # The number written here arrives at once, so that a second signal is not taken for the first.
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._former = signal.set_wakeup_fd(self._writing)
        self._watcher = threading.Thread(target=self._watch, name="signal-watcher", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *exception):
        if threading.current_thread() is not threading.main_thread():
            return
        signal.set_wakeup_fd(self._former)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._writing)
        self._watcher.join()
        os.close(self._reading)

    def _watch(self):
        while True:
            received = os.read(self._reading, 1)
            if not received:
                return
            number = received[0]
            if number not in self._handlers:
                continue
            if self.received is not None:
                os._exit(128 + number)
            self.received = number
            name = signal.Signals(number).name
            self._report("{}: stopping after this update or slide; once more ends at once, unsaved".format(name))
