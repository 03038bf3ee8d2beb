"""One training loop and what it stands on: processes and devices, parameter groups, schedules, EMA, state, log."""
