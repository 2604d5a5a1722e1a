"""A simulated step as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing show."""

import json

from graph_tools.simulation.simulate import Simulation

_TRACKS = ("compute", "stall", "copy in", "copy out")


def chrome_trace(simulation: Simulation) -> str:
    """The timeline of a simulation that was made with ``record=True``, as JSON; times are in microseconds.

    One row each for computing, stalls and the two directions of the link; counters show what device and host hold when
    each group ends.
    """
    rows = {track: number for number, track in enumerate(_TRACKS)}
    events = [
        {"ph": "M", "pid": 0, "tid": number, "name": "thread_name", "args": {"name": track}}
        for track, number in rows.items()
    ]
    for event in simulation.events:
        events.append(
            {
                "ph": "X",
                "pid": 0,
                "tid": rows[event.track],
                "name": event.name,
                "ts": event.start * 1e6,
                "dur": event.seconds * 1e6,
                "args": {"group": event.group},
            }
        )
    for end, device, host in zip(simulation.group_ends, simulation.group_device_bytes, simulation.group_host_bytes):
        held = {"device": device, "host": host}
        events.append({"ph": "C", "pid": 0, "name": "bytes", "ts": end * 1e6, "args": held})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
