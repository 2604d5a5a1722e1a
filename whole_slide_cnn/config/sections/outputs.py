"""``outputs``: files that train and test write beside those in the result folder."""

import dataclasses
from typing import Optional, Tuple

from whole_slide_cnn.config.options import Section, option, square
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.sizes import Size

WEIGHT_EXTENSIONS = (".h5", ".hdf5")


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
        prepare=square,
        may_change=True,
    )

    def check_rules(self) -> None:
        if self.heatmap_size is not None:
            self._set("heatmap_size", Size(*self.heatmap_size))
        if self.weights is not None and not self.weights.lower().endswith(WEIGHT_EXTENSIONS):
            raise ConfigError(
                "outputs.weights: expected a file that ends in {}, not {}".format(
                    " or ".join(WEIGHT_EXTENSIONS), self.weights
                )
            )
