"""One training loop and what it stands on.

Read first:
    loop.py      a step: batch, teacher, each run's part; lane.py is that part: backward, update, log
    session.py   runs around the loop: resume, checkpoints, held-out measurements, stop requests
    runtime.py   where it runs: processes, device, precision; launchers.py reads what started it
    sharding.py  one model over many GPUs, branch by branch
    checkpoints/ what a run leaves to go on from: writer.py, manifest.py, find.py, resume.py
"""
