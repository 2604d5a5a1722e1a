"""``python -m graph_tools``; see :mod:`graph_tools.cli`."""

import sys

from graph_tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
