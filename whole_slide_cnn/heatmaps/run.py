"""Heat maps of the slides of a list: computed for it, or from the pass that scores them."""

import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.engines.interface import Engine
from whole_slide_cnn.errors import SlideError, TrainingError, WholeSlideError
from whole_slide_cnn.files import make_folder
from whole_slide_cnn.heatmaps.cells import grid_of
from whole_slide_cnn.heatmaps.drawing import OVERLAY, heat_on
from whole_slide_cnn.heatmaps.files import (
    HeatmapSettings,
    cell_probabilities,
    file_stems,
    heatmap_memory,
    write_heatmap,
)
from whole_slide_cnn.heatmaps.localisation import THRESHOLD, localise
from whole_slide_cnn.heatmaps.masks import mask_path, read_mask
from whole_slide_cnn.heatmaps.tables import (
    LOCALISATION,
    THRESHOLDS,
    Found,
    localisation_sentence,
    write_localisation,
    write_thresholds,
)
from whole_slide_cnn.models.network import Network, make_network
from whole_slide_cnn.provenance import describe_file, git_commit, versions, write_provenance
from whole_slide_cnn.running import assembly
from whole_slide_cnn.running.bars import slide_bar
from whole_slide_cnn.running.communicator import Communicator, SingleCommunicator
from whole_slide_cnn.running.sharing import Sharing
from whole_slide_cnn.running.slides import SlideSource
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import Canvas, SlideCanvas
from whole_slide_cnn.slides.manifest import Record
from whole_slide_cnn.slides.tissue import tissue_mask


class SlideDrawer:
    """Writes the files of slides to a folder each, and compares their maps with masks of their lesions.

    Args:
        names: names of all slides of the list, which decide the names of the folders.
        output: folder of these folders.
        settings: what is drawn.
        masks: folder of masks to compare with, or None.

    Attributes:
        found: how well each slide that has a lesion in its mask was localised.
    """

    def __init__(self, names: Sequence[str], output: str, settings: HeatmapSettings, masks: Optional[str] = None):
        self.found: List[Found] = []
        self._folders = {name: os.path.join(output, stem) for name, stem in zip(names, file_stems(names))}
        self._settings = settings
        self._masks = masks

    def draw(self, record: Record, canvas: SlideCanvas, logits: np.ndarray) -> None:
        """Draw one slide.

        Args:
            record: the slide.
            canvas: the same, open.
            logits: (cells high, cells wide, classes), the class map of the canvas.

        Raises:
            SlideError: the slide cannot be read.
            WholeSlideError: the map is not finite, or a file cannot be written.
        """
        if not np.isfinite(logits).all():
            raise WholeSlideError(
                "the class map of slide {} is not finite; the weights are broken".format(record.slide_id)
            )
        probabilities = cell_probabilities(logits, self._settings.network.activation)
        small = write_heatmap(self._folders[record.slide_id], canvas, probabilities, self._settings)
        if self._masks is not None and record.label in self._settings.drawn:
            self._compare(record, canvas, probabilities[..., record.label], small, self._masks)

    def _compare(self, record: Record, canvas: SlideCanvas, values: np.ndarray, small: np.ndarray, masks: str) -> None:
        """Keep the agreement with a slide's mask, if it has one and that shows a lesion."""
        path = mask_path(masks, record.slide_id)
        if path is None:
            return
        size = Size(*small.shape[:2])
        lesion = read_mask(path, size)
        if lesion.any():
            heat = heat_on(grid_of(self._settings.network.trunk, canvas), values, size)
            self.found.append((record, localise(heat, lesion, tissue_mask(small), self._settings.threshold)))


class ScoredSlides:
    """Draws slides as they are scored, from the same pass over them: what
    :func:`whole_slide_cnn.evaluation.scoring.score_slides` gives them to.

    A slide that breaks while it is drawn keeps its score. Once a file cannot be written, nothing more is drawn, and
    only :meth:`finish` says so: no score is lost.

    Args:
        drawer: that draws.
        output: folder it draws to.
        draws: whether this process does; where several compute every slide together, one of them draws it.
    """

    def __init__(self, drawer: SlideDrawer, output: str, draws: bool = True):
        self._drawer, self._output, self._draws = drawer, output, draws
        self._drawn = 0
        self._undrawn: Dict[str, str] = {}
        self._stop: Optional[WholeSlideError] = None

    def __call__(self, record: Record, canvas: Canvas, logits: np.ndarray) -> None:
        """Draw one slide; see :meth:`SlideDrawer.draw`."""
        if self._stop is not None or not self._draws:
            return
        assert isinstance(canvas, SlideCanvas)  # nothing was done to it
        try:
            self._drawer.draw(record, canvas, logits)
            self._drawn += 1
        except SlideError as error:
            tqdm.write("{}; not drawn".format(error))
            self._undrawn[error.slide] = error.reason
        except WholeSlideError as error:
            self._stop = error

    def finish(self, group: Communicator) -> Dict[str, str]:
        """Say how many slides were drawn.

        Args:
            group: the processes that share the slides, all of which make this call.

        Returns:
            Slide name to reason, of slides of any process that were scored and could not be drawn.

        Raises:
            WholeSlideError: what could not be written.
        """
        if self._stop is not None:
            raise self._stop
        parts = group.allgather((self._drawn, self._undrawn))
        group.say("heat maps of {} slides: {}".format(sum(drawn for drawn, _ in parts), self._output))
        return {name: reason for _, undrawn in parts for name, reason in undrawn.items()}


def scored_slides(
    config: TrainConfig,
    network: Network,
    checkpoint: str,
    progress: Mapping[str, Any],
    names: Sequence[str],
    output: str,
    group: Communicator,
    draws: bool = True,
) -> ScoredSlides:
    """What draws the slides of the test list while they are scored.

    Args:
        config: the resolved configuration.
        network: that scores.
        checkpoint: file of its weights.
        progress: what the checkpoint says of itself.
        names: names of all slides of the list.
        output: folder to write; each slide gets a folder in it.
        group: the processes that share the slides.
        draws: see :class:`ScoredSlides`.

    Raises:
        WholeSlideError: the folder cannot be written.
    """
    assert config.data.test is not None, "its slides are being scored"
    if group.rank == 0:
        write_provenance(output, config, {"test": config.data.test}, checkpoint=checkpoint, processes=group.size)
    settings = make_settings(config, network, checkpoint, progress)
    return ScoredSlides(SlideDrawer(names, output, settings), output, draws)


def draw_heatmaps(
    config: TrainConfig,
    checkpoint: str,
    output: str,
    records: Sequence[Record],
    lists: Mapping[str, str],
    classes: Optional[Sequence[str]] = None,
    threshold: float = THRESHOLD,
    masks: Optional[str] = None,
    group: Optional[Communicator] = None,
) -> Dict[str, str]:
    """Draw the heat maps of some slides.

    Args:
        config: the configuration of the network and its slides.
        checkpoint: file of the weights.
        output: folder to write.
        records: the slides.
        lists: the data lists they are from, by name, for the provenance.
        classes: names of the classes to draw; all by default.
        threshold: of the contours.
        masks: folder of masks to compare with, or None.
        group: the processes that share the slides, or the windows of every slide
            (:class:`whole_slide_cnn.running.communicator.Communicator`), all of which make this call; None for one
            process.

    Returns:
        Slide name to reason, of slides that could not be read.

    Raises:
        WholeSlideError: an argument or the weights cannot be used, a file cannot be written, or no slide can be read.
    """
    group = SingleCommunicator() if group is None else group
    network = make_network(config)
    with group.after_first():
        assembly.shares_windows(config, group)
        drawn = _indices(classes, config.data.classes)
        if not 0 < threshold < 1:
            raise WholeSlideError("--threshold must be above 0 and below 1, not {}".format(threshold))
        if masks is not None and not os.path.isdir(masks):
            raise WholeSlideError("there is no folder {} of masks".format(masks))
        weights, progress = assembly.trained_weights(network, checkpoint)
        make_folder(output)
    resolved = assembly.resolve(config, training=False, processes=group.local_size) if group.rank == 0 else None
    config = group.broadcast(resolved)
    sharing = Sharing(group, assembly.shares_windows(config, group))
    settings = make_settings(config, network, checkpoint, progress, drawn, threshold)
    extra = extra_memory(config, network)
    with SlideSource(records, config.data) as source, assembly.make_engine(
        config, network, None, group.say, weights, extra, group
    ) as engine:
        if group.rank == 0:
            write_provenance(output, config, lists, checkpoint=checkpoint, processes=group.size)
        drawer = SlideDrawer([record.slide_id for record in source.records], output, settings, masks)
        _draw_slides(engine, source, drawer, sharing)
        parts = group.allgather((drawer.found, source.failed))
    failed = {slide: reason for _, found in parts for slide, reason in found.items()}
    if group.rank:
        return failed
    if len(failed) == len(source):
        raise TrainingError("none of the {} slides can be read".format(len(source)))
    if masks is not None:
        by_name = {record.slide_id: (record, result) for found, _ in parts for record, result in found}
        _write_tables(output, [by_name[record.slide_id] for record in source.records if record.slide_id in by_name])
    print("heat maps of {} slides: {}".format(len(source) - len(failed), output))
    return failed


def extra_memory(config: TrainConfig, network: Network) -> Tuple[Tuple[str, int], ...]:
    """Bytes that heat maps take beside the engine, by what for."""
    return heatmap_memory(network, Size(*config.data.canvas), Size(*(config.outputs.heatmap_size or OVERLAY)))


def make_settings(
    config: TrainConfig,
    network: Network,
    checkpoint: str,
    progress: Mapping[str, Any],
    drawn: Optional[Tuple[int, ...]] = None,
    threshold: float = THRESHOLD,
) -> HeatmapSettings:
    """What heat maps of a configuration show.

    Args:
        config: the configuration.
        network: that makes the maps.
        checkpoint: file of the weights.
        progress: what the checkpoint says of itself.
        drawn: indices of the classes to draw; all by default.
        threshold: of the contours.
    """
    classes = config.data.classes
    drawn = tuple(range(len(classes))) if drawn is None else drawn
    origin, overlay = _origin(checkpoint, progress), Size(*(config.outputs.heatmap_size or OVERLAY))
    return HeatmapSettings(network, classes, drawn, threshold, origin, overlay)


def _draw_slides(engine: Engine, source: SlideSource, drawer: SlideDrawer, sharing: Sharing) -> None:
    """Draw every readable slide that falls to this process."""
    records = sharing.take(source.records)
    with slide_bar("heat maps", len(records), shown=sharing.leads) as bar:
        for record, canvas in sharing.canvases(source, records):
            assert isinstance(canvas, SlideCanvas)  # nothing was done to it
            try:
                logits = engine.class_map(canvas)
                if sharing.leads:
                    drawer.draw(record, canvas, logits)
            except SlideError as error:
                sharing.report(source.fail(error))
            finally:
                canvas.close()
                bar.update()


def _write_tables(output: str, found: Sequence[Found]) -> None:
    write_localisation(os.path.join(output, LOCALISATION), found)
    print(localisation_sentence(found))
    write_thresholds(os.path.join(output, THRESHOLDS), [result for _, result in found])


def _indices(names: Optional[Sequence[str]], classes: Sequence[str]) -> Tuple[int, ...]:
    """Positions of the classes to draw."""
    for name in names or ():
        if name not in classes:
            raise WholeSlideError("there is no class {!r}; the classes are {}".format(name, ", ".join(classes)))
    return tuple(index for index, name in enumerate(classes) if not names or name in names)


def _origin(checkpoint: str, progress: Mapping[str, Any]) -> Dict[str, Any]:
    """Where the weights are from, in JSON types."""
    return {
        "checkpoint": describe_file(checkpoint),
        "epoch": progress.get("epoch"),
        "commit": git_commit(),
        "versions": versions(),
    }
