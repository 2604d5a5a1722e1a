"""Score the slides of a data list: ``python -m whole_slide_cnn.test --config FILE``."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Dict, Optional, Sequence, Tuple

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.config import TrainConfig, load_config
from whole_slide_cnn.files import make_folder

if TYPE_CHECKING:
    from whole_slide_cnn.evaluation.scores import Report
    from whole_slide_cnn.running.communicator import Communicator


def parser() -> argparse.ArgumentParser:
    """The command line of ``test``."""
    arguments = argparse.ArgumentParser(
        prog="python -m whole_slide_cnn.test", description="Score the slides of a data list, and draw their heat maps."
    )
    arguments.add_argument("--config", metavar="FILE", required=True, help="configuration (YAML)")
    arguments.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key")
    arguments.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="checkpoint (.npz) or weights (.h5); default: outputs.weights, or best.npz in the result folder",
    )
    arguments.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="data list to score (default: test)"
    )
    return arguments


def test(
    config: TrainConfig,
    checkpoint: Optional[str] = None,
    split: str = "test",
    group: "Optional[Communicator]" = None,
) -> "Tuple[Optional[Report], Dict[str, str], Dict[str, str]]":
    """Score a data list. Scores, reports, figures and a summary go to the folder ``<result folder>/<split>``; heat maps
    of the test list to where the configuration wants them, from the same pass over the slides.

    Args:
        config: the configuration.
        checkpoint: file of weights; None: those that the configuration trains.
        split: name of the data list.
        group: the processes that share the slides, or the windows of every slide
            (:class:`whole_slide_cnn.running.communicator.Communicator`), all of which make this call; None for one
            process. Process 0 alone writes scores.

    Returns:
        The report on slides (:class:`whole_slide_cnn.evaluation.scores.Report`; None in processes other than 0), the
        slides that could not be scored, and those that were but could not be drawn: their names, with the reasons.

    Raises:
        WholeSlideError: the weights or a list cannot be used, a file cannot be written, or no slide can be read.
    """
    from whole_slide_cnn.evaluation.results import write_joined
    from whole_slide_cnn.evaluation.scoring import score_slides
    from whole_slide_cnn.heatmaps import run as heatmaps
    from whole_slide_cnn.models.network import make_network
    from whole_slide_cnn.running import assembly
    from whole_slide_cnn.running.communicator import SingleCommunicator
    from whole_slide_cnn.running.sharing import Sharing

    group = SingleCommunicator() if group is None else group
    maps = config.outputs.heatmaps if split == "test" else None
    with contextlib.ExitStack() as stack:
        with group.after_first():
            assembly.shares_windows(config, group)
            source = stack.enter_context(assembly.open_splits(config, split)[split])
            network = make_network(config)
            checkpoint = assembly.trained_path(config, checkpoint)
            weights, progress = assembly.trained_weights(network, checkpoint)
            if maps is not None:
                make_folder(maps)  # what cannot be written is said before hours of work
        resolved = assembly.resolve(config, training=False, processes=group.local_size) if group.rank == 0 else None
        config = group.broadcast(resolved)
        extra_memory = () if maps is None else heatmaps.extra_memory(config, network)
        sharing = Sharing(group, assembly.shares_windows(config, group))
        engine = assembly.make_engine(config, network, None, group.say, weights, extra_memory, group)
        stack.enter_context(engine)
        drawing = None
        if maps is not None:
            names = [record.slide_id for record in source.records]
            drawing = heatmaps.scored_slides(config, network, checkpoint, progress, names, maps, group, sharing.leads)
        scores = score_slides(engine, source, sharing.take(source.records), group.rank == 0, drawing, sharing)
        found = group.allgather(scores + (source.failed,))
        failed = {slide: reason for _, _, broken in found for slide, reason in broken.items()}
        report = None
        if group.rank == 0:
            parts = [(scored, seconds) for scored, seconds, _ in found[: sharing.size]]
            report = write_joined(config, split, checkpoint, source, parts, failed)
        # last: no score is lost where a map cannot be written
        undrawn = {} if drawing is None else drawing.finish(group)
    return report, failed, undrawn


def main(arguments: Sequence[str]) -> int:
    """Parse, load the configuration, score and draw, together with the other processes that a launcher started; exit
    code 1 where slides could not be read."""
    options = parser().parse_args(arguments)
    from whole_slide_cnn.running.communicator import communicator, use_own_gpu

    with communicator() as group:
        use_own_gpu(group)
        with group.after_first():
            config = load_config(options.config, options.set)
        report, failed, undrawn = test(config, options.checkpoint, options.split, group)
    if report is None:  # process 0 says it, and the launcher may end the others when one exits with an error
        return 0
    for what, slides in (("scored", failed), ("drawn", undrawn)):
        for slide, reason in slides.items():
            print("not {}: slide {}: {}".format(what, slide, reason), file=sys.stderr)
    return 1 if failed or undrawn else 0


if __name__ == "__main__":
    run_command(main)
