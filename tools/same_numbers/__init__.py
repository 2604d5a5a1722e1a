"""Prove that a change keeps the numbers: record what two checkouts compute, and compare.

    python -m tools.same_numbers record --checkout old --python old/.venv/3.11/bin/python --output before
    python -m tools.same_numbers record --checkout . --python .venv/3.11/bin/python --output after --before before
    python -m tools.same_numbers compare before after

A checkout is driven by its commands, so that one tool serves all of them, however they are built inside. Only the
exactness of the engines is asked of the module ``benchmarks/exactness.py``, as its test does: its table has the largest
error of each case, and here every gradient counts. What must differ is left out: times, paths, versions, provenance.

With ``--before`` what an earlier checkout left is used as well: a run that it began goes on, and its weights and plans
are read. Needs NumPy and h5py: run it in either environment of a checkout.
"""
