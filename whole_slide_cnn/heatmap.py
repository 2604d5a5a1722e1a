"""Show where a network sees each class: ``python -m whole_slide_cnn.heatmap --checkpoint RESULT_DIR --output DIR``."""

import argparse
import csv
import io
import math
import os
import sys

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.config import load_config
from whole_slide_cnn.errors import ConfigError, SlideError, TrainingError, WholeSlideError
from whole_slide_cnn.files import make_folder, write_text

CONFIG, LOCALISATION, THRESHOLDS = "config.yaml", "localisation.csv", "thresholds.csv"
THRESHOLD = 0.5  # of the contours


def parser() -> argparse.ArgumentParser:
    """The command line of ``heatmap``."""
    arguments = argparse.ArgumentParser(
        prog="python -m whole_slide_cnn.heatmap",
        description="Draw class activation maps: overlays, pyramids and contours that lie on the slides.",
    )
    add = arguments.add_argument
    add("--config", metavar="FILE", help="configuration (YAML); default: config.yaml beside the checkpoint")
    add("--checkpoint", metavar="PATH", help="a checkpoint, or the result folder of a training, whose best is taken")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key")
    chosen = arguments.add_mutually_exclusive_group()
    chosen.add_argument("--slides", metavar="LIST", help="data list (CSV) of the slides to draw")
    chosen.add_argument("--split", choices=("train", "val", "test"), default="test",
                        help="data list of the configuration to draw (default: test)")  # fmt: skip
    add("--class", dest="drawn", metavar="NAME", action="append", help="class to draw, may be repeated; default: all")
    add("--threshold", type=float, default=THRESHOLD,
        help="probability at which contours are drawn (default: %(default)s)")  # fmt: skip
    add("--masks", metavar="FOLDER", help="folder of lesion masks, <slide>.png each, to compare the maps with")
    add("--output", metavar="FOLDER", required=True, help="folder to write; each slide gets a folder in it")
    return arguments


def heatmap(config, checkpoint, output, records, lists, classes=None, threshold=THRESHOLD, masks=None, group=None):
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
        group: the processes that share the slides (:class:`whole_slide_cnn.running.communicator.Communicator`), all of
            which make this call; None for one process.

    Returns:
        Slide name to reason, of slides that could not be read.
    """
    from whole_slide_cnn.models.network import make_network
    from whole_slide_cnn.provenance import write_provenance
    from whole_slide_cnn.running import assembly
    from whole_slide_cnn.running.communicator import SingleCommunicator
    from whole_slide_cnn.running.slides import SlideSource

    group = SingleCommunicator() if group is None else group
    network = make_network(config)
    with group.after_first():
        drawn = _indices(classes, config.data.classes)
        if not 0 < threshold < 1:
            raise WholeSlideError("--threshold must be above 0 and below 1, not {}".format(threshold))
        if masks is not None and not os.path.isdir(masks):
            raise WholeSlideError("there is no folder {} of masks".format(masks))
        weights, progress = assembly.trained_weights(network, checkpoint)
        make_folder(output)
    resolved = assembly.resolve(config, training=False, processes=group.local_size) if group.rank == 0 else None
    config = group.broadcast(resolved)
    settings = make_settings(config, network, checkpoint, progress, drawn, threshold)
    source = SlideSource(records, config.data)
    extra = extra_memory(config, network)
    try:
        with assembly.make_engine(config, network, None, group.say, weights, extra, group) as engine:
            if group.rank == 0:
                write_provenance(output, config, lists, checkpoint=checkpoint, processes=group.size)
            mine = source.records[group.rank :: group.size]
            parts = group.allgather((draw_slides(engine, source, mine, output, settings, masks), source.failed))
    finally:
        source.close()
    failed = {slide: reason for _, found in parts for slide, reason in found.items()}
    if group.rank:
        return failed
    if len(failed) == len(source):
        raise TrainingError("none of the {} slides can be read".format(len(source)))
    if masks is not None:
        found = {record.slide_id: (record, result) for found, _ in parts for record, result in found}
        in_order = [found[record.slide_id] for record in source.records if record.slide_id in found]
        _write_localisation(os.path.join(output, LOCALISATION), in_order)
        _write_thresholds(os.path.join(output, THRESHOLDS), [result for _, result in in_order])
    print("heat maps of {} slides: {}".format(len(source) - len(failed), output))
    return failed


def extra_memory(config, network):
    """Bytes that heat maps take beside the engine, by what for."""
    from whole_slide_cnn.heatmaps.files import OVERLAY, heatmap_memory

    return heatmap_memory(network, config.data.canvas, config.outputs.heatmap_size or OVERLAY)


def make_settings(config, network, checkpoint, progress, drawn=None, threshold=THRESHOLD):
    """What heat maps of a configuration show.

    Args:
        checkpoint: file of the weights.
        progress: what the checkpoint says of itself.
        drawn: indices of the classes to draw; all by default.
        threshold: of the contours.
    """
    from whole_slide_cnn.heatmaps.files import OVERLAY, HeatmapSettings

    classes = config.data.classes
    drawn = tuple(range(len(classes))) if drawn is None else drawn
    origin, overlay = _origin(checkpoint, progress), config.outputs.heatmap_size or OVERLAY
    return HeatmapSettings(network, classes, drawn, threshold, origin, overlay)


def draw_scored(engine, source, records, output, config, checkpoint, progress, group):
    """Draw slides of the test list that have been scored.

    Args:
        engine: that scored them; its memory was planned with :func:`extra_memory`.
        source: the :class:`~whole_slide_cnn.running.slides.SlideSource` that they were scored from.
        records: the share of this process of those that were scored.
        output: folder to write; each slide gets a folder in it.
        config: the configuration.
        checkpoint: file of the weights.
        progress: what the checkpoint says of itself.
        group: the processes that share the slides, all of which make this call.

    Returns:
        Slide name to reason, of slides of any process that could not be read any more.

    Raises:
        WholeSlideError: a file cannot be written.
    """
    from whole_slide_cnn.provenance import write_provenance

    before = set(source.failed)
    if group.rank == 0:
        write_provenance(output, config, {"test": config.data.test}, checkpoint=checkpoint, processes=group.size)
    settings = make_settings(config, engine.network, checkpoint, progress)
    draw_slides(engine, source, records, output, settings)
    undrawn = {name: reason for name, reason in source.failed.items() if name not in before}
    parts = group.allgather((len(records), undrawn))
    undrawn = {name: reason for _, found in parts for name, reason in found.items()}
    group.say("heat maps of {} slides: {}".format(sum(count for count, _ in parts) - len(undrawn), output))
    return undrawn


def draw_slides(engine, source, records, output, settings, masks=None):
    """Write the files of every readable slide among ``records`` to a folder of its own.

    Returns:
        ``(record, Localisation)`` of every slide that has a lesion in its mask.
    """
    import numpy as np
    from tqdm import tqdm

    from whole_slide_cnn.heatmaps import files as heatmaps
    from whole_slide_cnn.running.bars import slide_bar

    names = [record.slide_id for record in source.records]
    folders = dict(zip(names, heatmaps.file_stems(names)))
    found = []
    with slide_bar("heat maps", len(records)) as bar:
        for record, canvas in source.canvases(records, tqdm.write):
            try:
                logits = engine.class_map(canvas)
                if not np.isfinite(logits).all():
                    raise WholeSlideError(
                        "the class map of slide {} is not finite; the weights are broken".format(record.slide_id)
                    )
                probabilities = heatmaps.cell_probabilities(logits, settings.network.activation)
                folder = os.path.join(output, folders[record.slide_id])
                small = heatmaps.write_heatmap(folder, canvas, probabilities, settings)
                if masks is not None and record.label in settings.drawn:
                    found += _localised(record, canvas, probabilities, small, settings, masks)
            except SlideError as error:
                tqdm.write(source.fail(error))
            finally:
                canvas.close()
                bar.update()
    return found


def _localised(record, canvas, probabilities, small, settings, masks):
    """The agreement with a slide's mask, in a list, or an empty list where it has none or shows no lesion."""
    from whole_slide_cnn.heatmaps import files as heatmaps
    from whole_slide_cnn.heatmaps.cells import grid_of
    from whole_slide_cnn.heatmaps.localisation import localise
    from whole_slide_cnn.sizes import Size
    from whole_slide_cnn.slides.tissue import tissue_mask

    names = (record.slide_id, os.path.splitext(record.slide_id)[0])
    paths = [os.path.join(masks, name + ".png") for name in names]
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        return []
    size = Size(*small.shape[:2])
    lesion = heatmaps.read_mask(path, size)
    if not lesion.any():
        return []
    heat = heatmaps.heat_on(grid_of(settings.network.trunk, canvas), probabilities[..., record.label], size)
    return [(record, localise(heat, lesion, tissue_mask(small), settings.threshold))]


def _write_localisation(path, found):
    columns = ("iou", "pixel_auc", "threshold", "lesion_pixels", "tissue_pixels")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("slide_id", "label") + columns)
    for record, result in found:
        numbers = ["" if value != value else value for value in (getattr(result, column) for column in columns)]
        writer.writerow([record.slide_id, record.label] + numbers)
    write_text(path, text.getvalue())
    if not found:
        print("no slide has a mask with a lesion")
        return
    means = []
    for column in ("iou", "pixel_auc"):
        values = [getattr(result, column) for _, result in found if not math.isnan(getattr(result, column))]
        means.append("{:.3f}".format(sum(values) / len(values)) if values else "undefined")
    print("lesions of {} slides: mean IoU {}, mean pixel AUC {}".format(len(found), *means))


def _write_thresholds(path, results):
    """The mean IoU at every threshold, from which one is chosen on validation slides and given for others."""
    from whole_slide_cnn.heatmaps import localisation

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("threshold", "mean_iou"))
    for threshold, ious in zip(localisation.THRESHOLDS, zip(*(result.ious for result in results))):
        writer.writerow((threshold, sum(ious) / len(ious)))
    write_text(path, text.getvalue())


def _indices(names, classes):
    """Positions of the classes to draw."""
    for name in names or ():
        if name not in classes:
            raise WholeSlideError("there is no class {!r}; the classes are {}".format(name, ", ".join(classes)))
    return tuple(index for index, name in enumerate(classes) if not names or name in names)


def _origin(checkpoint, progress):
    """Where the weights are from, in JSON types."""
    from whole_slide_cnn.provenance import describe_file, git_commit, versions

    return {
        "checkpoint": describe_file(checkpoint),
        "epoch": progress.get("epoch"),
        "commit": git_commit(),
        "versions": versions(),
    }


def _resolve(options):
    """Configuration and checkpoint file from ``--config`` and ``--checkpoint``, each of which may stand for both."""
    if options.config is None and options.checkpoint is None:
        raise ConfigError("name a configuration (--config) or the result folder of a training (--checkpoint)")
    path, config = options.checkpoint, options.config
    if config is None:
        config = os.path.join(path if os.path.isdir(path) else os.path.dirname(path), CONFIG)
    config = load_config(config, options.set)
    from whole_slide_cnn.running import assembly, names

    if path is None:
        return config, assembly.trained_path(config)
    return config, os.path.join(path, names.BEST) if os.path.isdir(path) else path


def _records(options, config):
    """The slides to draw, and the data list they are from."""
    from whole_slide_cnn.slides.manifest import load_manifest

    name, path = ("slides", options.slides) if options.slides else (options.split, getattr(config.data, options.split))
    if path is None:
        raise ConfigError("data.{} must name a data list for this command, or --slides one".format(name))
    return load_manifest(path, config.data.classes), {name: path}


def main(arguments):
    """Parse, load, draw, together with the other processes that a launcher started; exit code 1 where slides could not
    be read."""
    options = parser().parse_args(arguments)
    from whole_slide_cnn.running.communicator import communicator, use_own_gpu

    with communicator() as group:
        use_own_gpu(group)
        with group.after_first():
            config, checkpoint = _resolve(options)
            records, lists = _records(options, config)
        failed = heatmap(
            config, checkpoint, options.output, records, lists, options.drawn, options.threshold, options.masks, group
        )
    if group.rank:  # process 0 says it, and the launcher may end the others when one exits with an error
        return 0
    for slide, reason in failed.items():
        print("not drawn: slide {}: {}".format(slide, reason), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
