"""The keys of a configuration: one frozen dataclass per section."""

import dataclasses
from typing import Optional, Tuple

from whole_slide_cnn.config.options import Section, option
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.sizes import Size

BACKBONES = ("tiny", "resnet18", "resnet50", "fixup_resnet34", "fixup_resnet50", "frozenbn_resnet50")
POOLINGS = ("gmp", "gap")
ACTIVATIONS = ("softmax", "sigmoid")
COMPUTE_TYPES = ("float32", "float64", "bfloat16", "float16")
ENGINES = ("auto", "direct", "streaming", "unified")
CHOICES = ("remat", "greedy", "integer", "best")
READERS = ("auto", "openslide", "image")
OPTIMIZERS = ("adam", "adamw")
WEIGHT_EXTENSIONS = (".h5", ".hdf5")
LR_SCALINGS = ("none", "sqrt")
ON_PLATEAU = ("reduce", "rollback")
AUGMENTATIONS = ("none", "paper_2021", "reference_2021", "paper_2022")
AUGMENT_DEVICES = ("cpu", "cuda")

# A 10x objective with the usual camera gives 1 um/px, a 20x one 0.5 um/px.
MPP_TIMES_MAGNIFICATION = 10.0


def _square(value):
    return [value, value] if type(value) is int else value


@dataclasses.dataclass(frozen=True)
class Data(Section):
    """Slides, their labels, and the canvas they are placed on."""

    classes: Tuple[str, ...] = option("Class names in the order of the model's outputs; labels are among them.")
    canvas: Tuple[int, int] = option(
        "Height and width in pixels of the white canvas that every slide is centered on; one number means a square.",
        at_least=1,
        prepare=_square,
    )
    train: Optional[str] = option("Data list (CSV) of the slides to train on.", None, path=True)
    val: Optional[str] = option("Data list (CSV) of the slides that choose the best checkpoint.", None, path=True)
    test: Optional[str] = option("Data list (CSV) of the slides to score.", None, path=True, may_change=True)
    slides: str = option("Folder of the slide files.", ".", path=True, may_change=True)
    extension: str = option("Ending added to a slide_id to get its file name, such as .svs; empty adds nothing.", "")
    reader: str = option(
        "Library that reads slides: openslide, image (Pillow and tifffile), or auto, which picks one per file.",
        "auto",
        choices=READERS,
    )
    mpp: Optional[float] = option(
        "Working resolution in um/px. Give exactly one of mpp, magnification and ratio.", None, above=0
    )
    magnification: Optional[float] = option(
        "Working resolution as a magnification, converted once to mpp = 10 / magnification: 20 means 0.5 um/px.",
        None,
        above=0,
    )
    ratio: Optional[float] = option(
        "Working resolution as a plain resize ratio of the slide's full resolution, whatever its um/px.", None, above=0
    )
    ratio_mpp: Optional[float] = option(
        "Full resolution in um/px that data.ratio is meant for; Aperio slides of another one, which is 10 / the "
        "magnification they state, are resized to the same um/px. null takes data.ratio as it is on all slides.",
        None,
        above=0,
    )
    slide_mpp: Optional[float] = option(
        "Full resolution in um/px of slides for which neither the file nor the data list states one.", None, above=0
    )
    max_failed_share: float = option(
        "Share of the slides that may be unreadable before a training run that skipped them ends with an error.",
        0.1,
        at_least=0,
        at_most=1,
        may_change=True,
    )

    allow_shared_cases: bool = option(
        "Let a case be in two data lists, with a warning; scores of slides that were trained on mean nothing.",
        False,
        may_change=True,
    )

    def check_rules(self):
        self._set("canvas", Size(*self.canvas))
        if len(self.classes) < 2:
            raise ConfigError("data.classes: expected two classes or more, got {}".format(len(self.classes)))
        for name in self.classes:
            if not name.strip() or name != name.strip():
                raise ConfigError("data.classes: {!r} is blank or begins or ends with a space".format(name))
            if self.classes.count(name) > 1:
                raise ConfigError("data.classes: {} is listed twice".format(name))
        if self.extension and not self.extension.startswith("."):
            raise ConfigError("data.extension: expected a leading dot, as in .{}".format(self.extension))
        given = [name for name in ("mpp", "magnification", "ratio") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "give exactly one of data.mpp, data.magnification and data.ratio, not {}; null unsets a key of a base "
                "file".format(" and ".join("data." + name for name in given) or "none")
            )
        if self.magnification is not None:
            self._set("mpp", MPP_TIMES_MAGNIFICATION / self.magnification)
            self._set("magnification", None)


@dataclasses.dataclass(frozen=True)
class Model(Section):
    """The network."""

    backbone: str = option("Convolutional network from image to embedding map.", "fixup_resnet50", choices=BACKBONES)
    pooling: str = option("Global pooling: gmp (maximum) or gap (average).", "gmp", choices=POOLINGS)
    activation: str = option(
        "Output: softmax (classes exclude each other) or sigmoid (each class on its own).",
        "softmax",
        choices=ACTIVATIONS,
    )
    compute: str = option(
        "Type of convolutions and feature maps; variables, the head and the loss have at least float32. float16 scales "
        "the loss, and leaves out an update whose gradients are not finite.",
        "float32",
        choices=COMPUTE_TYPES,
    )
    weights: Optional[str] = option(
        "File of initial weights (.h5, .npz or .safetensors); null starts from random weights.", None, path=True
    )
    class0_bias: float = option("Initial bias of the first class's output, which favors that class at the start.", 1.0)


@dataclasses.dataclass(frozen=True)
class Streaming(Section):
    """The streaming engine."""

    window: int = option(
        "Side in canvas pixels of a window's core, the part it contributes; a halo is added around it, so larger "
        "windows need more memory and less computation.",
        1024,
        at_least=32,
    )


@dataclasses.dataclass(frozen=True)
class Unified(Section):
    """The unified engine."""

    strip_mb: float = option(
        "Megabytes (10^6 bytes) that one strip of a feature map may have; smaller strips need less memory at a time, "
        "and read more rows of the strips beside them.",
        256.0,
        above=0,
    )
    group_mb: float = option(
        "Megabytes that the operations of a group may touch together; groups run one after the other. Choose what the "
        "device has free.",
        4000.0,
        above=0,
    )
    prefetch_depth: int = option(
        "How many groups ahead a tensor is fetched to the device; 0 fetches none. With unified.device_gb and choice "
        "remat the plan decides.",
        1,
        at_least=0,
        may_change=True,
    )
    device_gb: Optional[float] = option(
        "Gigabytes (10^9 bytes) that what a step holds at once shall fit: maps beyond it leave the device after "
        "the forward pass, or are computed again in the backward pass, which takes longer. null keeps all, as the 2021 "
        "paper does.",
        None,
        above=0,
    )
    host_gb: Optional[float] = option(
        "Gigabytes of host memory for what leaves a GPU; null sets no limit. Without a GPU, of unified.spill_dir.",
        None,
        above=0,
    )
    choice: str = option(
        "How to choose what leaves or is computed again for unified.device_gb: remat (whole runs of layers from shared "
        "copies), greedy or integer (single maps; the latter needs scipy 1.9), or best (whichever of these, and of "
        "keeping all, is predicted to be fastest).",
        "remat",
        choices=CHOICES,
    )
    spill_dir: Optional[str] = option(
        "Without a GPU: folder for files without names to which maps beyond unified.device_gb leave for a while; null "
        "meets that budget by computing again alone.",
        None,
        path=True,
        may_change=True,
    )

    def check_rules(self):
        if self.device_gb is not None and self.group_mb > 1000 * self.device_gb:
            raise ConfigError(
                "unified.group_mb: a group of {:g} MB exceeds unified.device_gb, which is {:g}; give a smaller "
                "group".format(self.group_mb, self.device_gb)
            )


@dataclasses.dataclass(frozen=True)
class Training(Section):
    """The training loop."""

    optimizer: str = option("adam, or adamw (Adam with decoupled weight decay).", "adam", choices=OPTIMIZERS)
    learning_rate: float = option("Step size of the optimizer.", 2e-5, above=0)
    weight_decay: float = option("Decoupled weight decay of adamw; adam has none and ignores it.", 0.01, at_least=0)
    beta1: float = option("Decay rate of the running mean of gradients.", 0.9, at_least=0, below=1)
    beta2: float = option("Decay rate of the running mean of squared gradients.", 0.999, at_least=0, below=1)
    epsilon: float = option("Added to the denominator of the update.", 1e-8, above=0)
    lr_scaling: str = option(
        "What learning_rate and min_learning_rate are multiplied by: none (1) or sqrt (the square root of the number "
        "of processes that train together).",
        "none",
        choices=LR_SCALINGS,
    )
    min_learning_rate: float = option("The learning rate is never reduced below this.", 0.0, at_least=0)
    reduce_factor: float = option("What the learning rate is multiplied by on a plateau.", 0.1, above=0, below=1)
    reduce_patience: Optional[int] = option(
        "Epochs in a row without a lower validation loss (training loss where nothing is validated) that are a plateau "
        "and reduce the learning rate, until it is min_learning_rate; null never reduces it.",
        None,
        at_least=1,
    )
    min_improvement: float = option(
        "A loss has to be lower by more than this for reduce_patience and early_stop_patience to count from its epoch; "
        "the best weights are those of the lowest loss all the same.",
        0.0,
        at_least=0,
    )
    on_plateau: str = option(
        "What else happens when the learning rate is reduced: reduce (nothing), or rollback (the weights return to "
        "those of the best epoch, and the optimizer's running means with them: they are neither kept nor set to zero).",
        "reduce",
        choices=ON_PLATEAU,
    )
    early_stop_patience: Optional[int] = option(
        "Epochs in a row without a lower validation loss, at a learning rate that is not reduced any more, that end "
        "the run before its last epoch; null never does.",
        None,
        at_least=1,
    )
    epochs: int = option(
        "Number of epochs; each ends with a validation and a checkpoint.", 100, at_least=1, may_change=True
    )
    updates_per_epoch: int = option("Optimizer updates in one epoch.", 100, at_least=1)
    batch_size: int = option(
        "Slides whose mean gradient makes one update; of each process, where several train together.", 1, at_least=1
    )
    checkpoint_every_minutes: float = option(
        "Minutes after which the next update or validated slide is followed by a checkpoint, besides that at each "
        "epoch's end.",
        10.0,
        above=0,
        may_change=True,
    )
    checkpoint_every_updates: Optional[int] = option(
        "Updates after which a checkpoint is written, besides that at each epoch's end and those by the clock; null "
        "leaves it to the clock.",
        None,
        at_least=1,
        may_change=True,
    )
    tensorboard: bool = option(
        "Whether scalars for TensorBoard are written to the folder tensorboard in result_dir.", True, may_change=True
    )

    def check_rules(self):
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                "train.min_learning_rate: {} is above train.learning_rate, {}".format(
                    self.min_learning_rate, self.learning_rate
                )
            )
        if self.on_plateau == "rollback" and self.reduce_patience is None:
            raise ConfigError("train.on_plateau: rollback needs train.reduce_patience, which says what a plateau is")
        if None not in (self.reduce_patience, self.early_stop_patience) and not self.min_learning_rate:
            raise ConfigError(
                "train.early_stop_patience: counts from the last reduction of the learning rate; give "
                "train.min_learning_rate, so that there is a last one"
            )


@dataclasses.dataclass(frozen=True)
class Outputs(Section):
    """Files that train and test write beside those in the result folder."""

    weights: Optional[str] = option(
        "File (.h5) for the best weights, which test then scores; null means best.npz of the result folder.",
        None,
        path=True,
        may_change=True,
    )
    config: Optional[str] = option(
        "File for the resolved configuration of a training run.", None, path=True, may_change=True
    )
    train_times: Optional[str] = option("File (CSV) for the seconds of every update.", None, path=True, may_change=True)
    test_times: Optional[str] = option(
        "File (CSV) for the seconds of every scored slide.", None, path=True, may_change=True
    )
    test_scores: Optional[str] = option(
        "File (JSON) for slide_path, y_true and y_pred of every slide of the test list.",
        None,
        path=True,
        may_change=True,
    )
    heatmaps: Optional[str] = option(
        "Folder for heat maps of the slides of the test list that test has scored, a folder for each; null draws none.",
        None,
        path=True,
        may_change=True,
    )
    heatmap_size: Optional[Tuple[int, int]] = option(
        "Height and width in pixels within which the overlay of a heat map shows the whole slide, in the slide's own "
        "shape and no larger than the slide; one number means a square, null means 2048.",
        None,
        at_least=1,
        prepare=_square,
        may_change=True,
    )

    def check_rules(self):
        if self.heatmap_size is not None:
            self._set("heatmap_size", Size(*self.heatmap_size))
        if self.weights is not None and not self.weights.lower().endswith(WEIGHT_EXTENSIONS):
            raise ConfigError(
                "outputs.weights: expected a file that ends in {}, not {}".format(
                    " or ".join(WEIGHT_EXTENSIONS), self.weights
                )
            )


@dataclasses.dataclass(frozen=True)
class Augmentation(Section):
    """Random changes of the slides that are trained on, drawn once per slide and step."""

    preset: str = option(
        "Values of those keys below that are null: none changes nothing; paper_2021 has flips, rotation, shift, "
        "contrast, brightness, hue and value; reference_2021 has saturation in place of value; paper_2022 has flips, "
        "rotation and stains.",
        "none",
        choices=AUGMENTATIONS,
    )
    flip: Optional[bool] = option("Whether to flip slides, along each axis with probability 1/2.", None)
    rotation: Optional[float] = option(
        "Largest rotation about the canvas's centre, in degrees either way.", None, at_least=0, at_most=180
    )
    shift: Optional[float] = option(
        "Largest shift along each axis, as a share of the canvas's height or width.", None, at_least=0, at_most=1
    )
    contrast: Optional[Tuple[float, float]] = option(
        "Smallest and largest factor of a channel's difference from 127.", None, at_least=0
    )
    brightness: Optional[Tuple[float, float]] = option("Smallest and largest factor of all channels.", None, at_least=0)
    hue: Optional[float] = option(
        "Largest change of the hue either way, in 256ths of the full circle.", None, at_least=0, at_most=128
    )
    saturation: Optional[float] = option(
        "Largest change of the saturation (0 to 255) either way; it also tints what has no color.",
        None,
        at_least=0,
        at_most=255,
    )
    value: Optional[float] = option(
        "Largest change of the value (0 to 255), a pixel's strongest channel, either way.",
        None,
        at_least=0,
        at_most=255,
    )
    stain_angle: Optional[float] = option(
        "Largest turn of the colors of hematoxylin and eosin, in degrees of optical density either way.",
        None,
        at_least=0,
        at_most=45,
    )
    stain_strength: Optional[Tuple[float, float]] = option(
        "Smallest and largest factor of the amounts of hematoxylin and eosin.", None, at_least=0, at_most=4
    )
    device: str = option("Where augmentation is computed: cpu, or cuda (needs CuPy).", "cpu", choices=AUGMENT_DEVICES)

    def check_rules(self):
        for name in ("contrast", "brightness", "stain_strength"):
            limits = getattr(self, name)
            if limits is not None and limits[0] > limits[1]:
                raise ConfigError("augment.{}: the smallest factor, {}, is above the largest, {}".format(name, *limits))


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Everything that train and test need to know."""

    result_dir: str = option("Folder for checkpoints, logs, scores and figures.", path=True, may_change=True)
    data: Data = option("Slides, their labels, and the canvas they are placed on.")
    seed: int = option("Seed of initial weights and of the order of slides.", 0, at_least=0, at_most=2**32 - 1)
    engine: str = option(
        "How a slide is computed: direct (whole canvas at once), streaming (windows, flat in memory), unified "
        "(strips of the whole canvas in a planned order, for unified memory), or auto: the fastest that fits, as the "
        "planner has it.",
        "streaming",
        choices=ENGINES,
    )
    memory_gb: Optional[float] = option(
        "Memory in GB (10^9 bytes) that a run may use, and each process of it where several train together; one that "
        "needs more is refused. null means all the machine has.",
        None,
        above=0,
        may_change=True,
    )
    model: Model = option("The network.", Model())
    streaming: Streaming = option("The streaming engine.", Streaming())
    unified: Unified = option("The unified engine.", Unified())
    train: Training = option("The training loop.", Training())
    augment: Augmentation = option("Random changes of the slides that are trained on.", Augmentation())
    outputs: Outputs = option("Files that train and test write beside those in the result folder.", Outputs())
