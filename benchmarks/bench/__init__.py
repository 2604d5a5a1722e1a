"""What ``benchmarks/throughput.py`` is made of: slides, cases, processes, statistics, floors, peers, and the page."""
