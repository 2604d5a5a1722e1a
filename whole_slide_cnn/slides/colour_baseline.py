"""The former place of ``python -m whole_slide_cnn.colour_baseline``, for command lines of before."""

import runpy

if __name__ == "__main__":
    runpy.run_module("whole_slide_cnn.colour_baseline", run_name="__main__")
