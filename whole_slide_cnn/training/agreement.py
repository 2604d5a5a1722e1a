"""What processes that train together tell each other, so that all of them do the same."""

from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence

from tqdm import tqdm

from whole_slide_cnn.running.communicator import Communicator
from whole_slide_cnn.running.sharing import Sharing
from whole_slide_cnn.running.slides import SlideSource
from whole_slide_cnn.training.progress import Tally


class Share(NamedTuple):
    """What one process tells the others after its share of an update, or of some slides to validate.

    Attributes:
        position: in the stream of training slides, up to which it has trained.
        tally: of the slides of its share.
        failed: broken slides with their reasons, by the data list's name.
        signal: the number of the signal that asked it to stop, or None.
    """

    position: int
    tally: Tally
    failed: Dict[str, Dict[str, str]]
    signal: Optional[int]


class Agreement:
    """A group of processes with the same data lists: what any of them finds broken is left out by all, and all stop
    after the same step when any of them was asked to.

    Attributes:
        leads: whether this process is the one that writes files and says what all know.
        stop: the number of a signal that any of them had received when they last agreed, or None.
    """

    def __init__(self, group: Communicator, sources: Mapping[str, SlideSource], sharing: Sharing):
        self.leads = group.rank == 0
        self.stop: Optional[int] = None
        self._group = group
        self._sources = dict(sources)
        self._sharing = sharing

    def exchange(self, signal: Optional[int], position: int, tally: Tally) -> List[Share]:
        """Tell the others a share, and hear theirs; by rank, and each slide in one of them: the first, where all
        processes compute every slide together. All processes call this at the same time."""
        failed = {name: dict(source.failed) for name, source in self._sources.items()}
        shares = self._group.allgather(Share(position, tally, failed, signal))
        for share in shares:
            for name, source in self._sources.items():
                source.failed.update(share.failed[name])
        self.stop = next((share.signal for share in shares if share.signal is not None), None)
        return shares[: self._sharing.size]

    def say(self, text: str):
        """What all processes know is said by one."""
        if self.leads:
            tqdm.write(text)


def joined(shares: Sequence[Share], nothing: Tally) -> Tally:
    """The tally of all processes' slides; ``nothing`` is that of no slides."""
    for share in shares:
        nothing = nothing.join(share.tally)
    return nothing
