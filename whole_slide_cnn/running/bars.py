"""Progress bars in slides per minute."""

from tqdm import tqdm


class SlideBar(tqdm):
    """A progress bar in slides per minute."""

    @property
    def format_dict(self):
        values = super().format_dict
        rate = values["rate"] or ((values["n"] - values["initial"]) / values["elapsed"] if values["elapsed"] else 0.0)
        values["slides_per_minute"] = "{:.1f}".format(60.0 * rate)
        return values


def slide_bar(text: str, slides: int, done: int = 0, shown: bool = True) -> SlideBar:
    """A progress bar with slides per minute and the time left; silent where standard error is no terminal."""
    return SlideBar(
        total=slides,
        initial=done,
        desc=text,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} slides, {slides_per_minute}/min, "
        "{remaining} left{postfix}",
        leave=False,
        disable=None if shown else True,
    )
