"""The operations UmPrefetch, UmEvict and UmAdvise in a TensorFlow graph.

They take a tensor for its address and have no output. Like every operation without output they run only if they are
fetched, or if something that is fetched depends on them by a control edge: :func:`load_ops` gives functions that put
them after given operations, and their caller decides what waits for them.
"""

import contextlib
import re
from typing import Any, Dict, Iterable, Iterator, Optional, Tuple, Union

from tf_um_patch.build import build_operations, built_for
from tf_um_patch.errors import BuildError, OptionError, UnifiedMemoryError
from tf_um_patch.moves import Moves

# TensorFlow's own, which is not imported here.
Tensor = Any
Operation = Any

# Name -> (CUmem_advise, whether it names the host rather than the device).
ADVICE = {
    "read_mostly": (1, False),
    "not_read_mostly": (2, False),
    "prefer_device": (3, False),
    "prefer_host": (3, True),
    "prefer_neither": (4, False),
    "map_on_device": (5, False),
    "not_map_on_device": (6, False),
}


class UmOps:
    """The loaded operations.

    Attributes:
        available: True.
        library: path of the compiled library.
    """

    available = True

    def __init__(self, tensorflow: Any, library: str):
        self._ops = tensorflow.load_op_library(library)
        self._moves = Moves(library)  # after TensorFlow, which sees only operations of what it loads itself
        self.library = library

    def prefetch(self, tensor: Tensor, after: Iterable[Operation] = (), name: Optional[str] = None) -> Operation:
        """An operation that starts to move a tensor to its device.

        It is placed with the tensor's producer; on a GPU the move begins when all work is done that was enqueued
        there before it, and overlaps with later work. On a CPU it only counts.

        Args:
            tensor: of any shape and type; never copied.
            after: operations or tensors of the same graph that must have run before.
            name: of the operation.

        Returns:
            The ``tf.Operation``. Whatever shall run after the move was started must be given a control edge from it.
        """
        with self._placed(tensor, after):
            return self._ops.um_prefetch(tensor, name=name)

    def evict(self, tensor: Tensor, after: Iterable[Operation] = (), name: Optional[str] = None) -> Operation:
        """An operation that starts to move a tensor to the host; as :meth:`prefetch` otherwise."""
        with self._placed(tensor, after):
            return self._ops.um_evict(tensor, name=name)

    def advise(
        self, tensor: Tensor, advice: str, after: Iterable[Operation] = (), name: Optional[str] = None
    ) -> Operation:
        """An operation that gives the driver one of ADVICE about a tensor's memory; as :meth:`prefetch` otherwise.

        Raises:
            OptionError: there is no such advice.
        """
        if advice not in ADVICE:
            raise OptionError("there is no advice {!r}: use one of {}".format(advice, ", ".join(sorted(ADVICE))))
        code, on_host = ADVICE[advice]
        with self._placed(tensor, after):
            return self._ops.um_advise(tensor, advice=code, on_host=on_host, name=name)

    def evict_to_file(self, tensor: Tensor, folder: str, name: Optional[str] = None) -> Tensor:
        """A scalar tensor: the handle of a file in a folder to which a tensor is written, on the CPU.

        The file takes the tensor's place once nothing else refers to the tensor. It is gone when :meth:`restore` has
        read it, or when the process ends.
        """
        with tensor.graph.as_default():
            return self._ops.um_evict_to_file(tensor, folder=folder, name=name)

    def restore(self, handle: Tensor, like: Tensor, name: Optional[str] = None) -> Tensor:
        """What :meth:`evict_to_file` wrote, as a tensor of the shape and type of ``like``; once for each handle."""
        with handle.graph.as_default():
            return self._ops.um_restore(handle, T=like.dtype, shape=like.shape, name=name)

    def counters(self) -> Dict[str, int]:
        """What the operations did in this process so far.

        ``<verb>_calls`` and ``<verb>_bytes`` count executions on any device; on GPUs ``enqueued`` counts moves and
        advices that the driver took, ``not_managed`` those on plain device memory, ``failed`` those that it refused
        and ``no_driver`` those without a driver.
        """
        return self._moves.counters()

    def reset_counters(self) -> None:
        """Sets all counters to 0."""
        self._moves.reset_counters()

    def last_move(self) -> Tuple[int, int]:
        """Address and bytes of the latest move that the driver took in this process; (0, 0) before the first."""
        return self._moves.last_move()

    @contextlib.contextmanager
    def _placed(self, tensor: Tensor, after: Iterable[Operation]) -> Iterator[None]:
        # Nothing but `after` shall decide when it runs and nothing but the tensor where, whatever the caller is in:
        # on another device TensorFlow would copy the tensor there.
        graph = tensor.graph
        placed = graph.colocate_with(tensor.op, ignore_existing=True)
        with graph.as_default(), graph.control_dependencies(None), graph.control_dependencies(list(after)), placed:
            yield


class NoUmOps:
    """Stands for operations that cannot be had.

    Attributes:
        available: False.
        reason: one sentence that says why, what is lost, and what helps.
    """

    available = False

    def __init__(self, reason: str):
        self.reason = reason

    def prefetch(self, *arguments: Any, **options: Any) -> Any:
        """Raises UnifiedMemoryError, as all its functions do: ask ``available`` first."""
        raise UnifiedMemoryError(self.reason)

    evict = advise = evict_to_file = restore = counters = reset_counters = last_move = prefetch


_LOADED: Dict[str, UmOps] = {}
_MARK = re.compile(rb"tfum operations for ([^\0]+)\0")


def load_ops(library: Optional[str] = None) -> Union[UmOps, NoUmOps]:
    """The operations for this process's TensorFlow, compiled at the first use on a machine.

    Args:
        library: a compiled library to use instead of the one in the cache.

    Returns:
        :class:`UmOps`, or :class:`NoUmOps` where there is no compiler or it fails.

    Raises:
        BuildError: ``library`` is not one for this TensorFlow.
    """
    import tensorflow  # only here: importing this module must not start it

    if library is not None:
        return _load(tensorflow, library)
    try:
        return _load(tensorflow, build_operations(tensorflow))
    except BuildError as error:
        return NoUmOps(
            "{}; until then tensors are not moved ahead of their use, and the GPU waits for each page".format(error)
        )


def _load(tensorflow: Any, library: str) -> UmOps:
    if library not in _LOADED:
        _check(library, built_for(tensorflow))
        if _LOADED:  # TensorFlow ends the process when an operation is registered twice
            raise BuildError(
                "{} cannot be loaded beside {}: start another process for it".format(library, next(iter(_LOADED)))
            )
        try:
            _LOADED[library] = UmOps(tensorflow, library)
        except (tensorflow.errors.OpError, OSError) as error:
            raise BuildError(
                "{} cannot be loaded ({}): delete it, and it is built anew".format(library, error)
            ) from error
    return _LOADED[library]


def _check(library: str, expected: str) -> None:
    """Refuse a library that was compiled for another TensorFlow: loaded, it may crash rather than fail."""
    try:
        with open(library, "rb") as stream:
            found = _MARK.search(stream.read())
    except OSError as error:
        raise BuildError("{} cannot be read ({}): give another one, or none".format(library, error.strerror)) from error
    if found is None:
        raise BuildError("{} is no library of operations: give another library, or none".format(library))
    if found.group(1).decode("utf-8", "replace") != expected:
        raise BuildError(
            "{} was built for {}, not for {}: delete it, and it is built anew".format(
                library, found.group(1).decode("utf-8", "replace"), expected
            )
        )
