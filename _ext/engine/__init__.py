"""Run notebooks and keep what they left; knows nothing of Sphinx.

    notebook       a file as the book reads it: cells, what it imports, what is wrong with it
    store          executed notebooks by key
    surroundings   versions, Python, device: what else decides about the numbers it prints
    keeper         the process that starts a kernel and ends all that it has started (a script)
    warm           kernels, kept or forked from a process that has imported torch (warm_server, a script)
    runner         one notebook in a kernel of its own: a job in, an outcome out
    pool, cluster  where jobs run: on this machine, on the workers of a Dask scheduler
    options        how notebooks are to be run, as a user has said it
    session        one build: which run belongs to which notebook
    export         a notebook as one file that needs nothing of this repository (first_cell, its start)

Each module imports those above it, never one below.
"""
