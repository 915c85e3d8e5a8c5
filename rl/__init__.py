"""Learn and judge: RLlib training, Ray Tune sweeps, honest validation, export.

config      the one settings tree
console     progress bars and tables
cli         the `swing-rl` command
jobs        the same commands as Ray jobs
learning    network, RLModule, training
judging     baselines, sweep, validation, report, export
"""
