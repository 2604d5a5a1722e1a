"""Errors a caller can act on: each is one sentence that names the thing and the remedy."""


class GraphToolsError(Exception):
    """Base of all errors caused by the graph, the plan or the machine rather than by a defect of this package."""


class CycleError(GraphToolsError):
    """Operations wait for each other in a circle, so that no order exists."""


class DanglingInputError(GraphToolsError):
    """An operation reads a tensor, or waits for an operation, that the graph does not have; or two share a name."""


class UnknownSizeError(GraphToolsError):
    """A tensor's number of bytes is not known before the run."""


class UnsupportedOpError(GraphToolsError):
    """The graph has an operation that cannot be planned."""


class BudgetError(GraphToolsError):
    """Memory that must be there at once does not fit into what there is."""


class PlanError(GraphToolsError):
    """A plan does not belong to the graph it is used with, or contradicts itself."""


class EditError(GraphToolsError):
    """A graph cannot be edited any more."""


class FileError(GraphToolsError):
    """A file cannot be read, written or understood."""
