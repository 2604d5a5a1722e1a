"""``train`` with a slide that the last of the processes opens, but cannot read where the engine wants its windows.

mpirun -np 2 python one_breaks.py SLIDE ARGUMENT...
"""

import sys
import threading

from tf_um_patch.host import launched
from whole_slide_cnn import train
from whole_slide_cnn.cli import run_command
from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.slides.canvas import SlideCanvas


def break_slide(name):
    """Let the engine's thread fail to read a slide, in this process."""
    original = SlideCanvas._read

    def read(canvas, window):
        if canvas.name == name and threading.current_thread().name.startswith("window-reader"):
            raise SlideError(name, "block 7 cannot be decoded")
        return original(canvas, window)

    SlideCanvas._read = read


if __name__ == "__main__":
    launch = launched()
    if (launch.rank or 0) == launch.size - 1:
        break_slide(sys.argv[1])
    run_command(train.main, sys.argv[2:])
