"""Which cells hold a maximum: by a forward pass of its own, window by window, whatever an engine does inside."""

import numpy as np

from whole_slide_cnn.engines.streaming.cover import blank_cells
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Window
from whole_slide_cnn.slides.canvas import Canvas

SIDE = 32  # of a window, in cells


def winner_cells(network: Network, weights, canvas: Canvas, compute: str = "float32") -> np.ndarray:
    """Cells with a gradient under maximum pooling: bool (cells high, cells wide).

    A channel's first maximum in raster order counts, unless it is zero. Windows without tissue are left out; a blank
    cell there may win a channel, and takes no work.
    """
    import tensorflow.compat.v1 as tf

    from whole_slide_cnn.engines.runtime import choose_products, session_config
    from whole_slide_cnn.models import build

    choose_products(compute)
    trunk, cells = network.trunk, geometry.cells_of(network.trunk, canvas.size)
    blank = blank_cells(trunk, canvas.size, canvas.blank_blocks())
    best, owner = np.zeros(network.channels), np.full(network.channels, -1)
    with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
        variables = build.create_variables(network, compute)
        pixels, window = tf.placeholder(tf.uint8, [1, None, None, 3]), build.GeometryTensors.placeholders(trunk)
        embedding = build.TrunkBuilder(trunk, variables, compute)(build.normalise(network, pixels, compute), window)
        values_and_cells = build.pool_maximum(embedding, build.variable_type(compute))
        for name, variable in variables.items():
            variable.load(weights[name], session)
        for top in range(0, cells.height, SIDE):
            for left in range(0, cells.width, SIDE):
                part = Window(top, left, min(SIDE, cells.height - top), min(SIDE, cells.width - left))
                if blank[top : part.bottom, left : part.right].all():
                    continue
                place = geometry.window_geometry(trunk, canvas.size, part)
                feed = {pixels: canvas.read(place.pixels)[np.newaxis]}
                feed.update({window.padding: place.padding, window.crops: place.crops})
                values, at = session.run(values_and_cells, feed)
                at = (top + at // part.width) * cells.width + left + at % part.width
                higher = (values > best) | ((values == best) & (owner >= 0) & (at < owner))
                best[higher], owner[higher] = values[higher], at[higher]
    found = np.zeros(cells.height * cells.width, bool)
    found[owner[owner >= 0]] = True
    return found.reshape(cells)
