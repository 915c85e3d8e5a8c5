"""Learn and judge: RLlib training, Ray Tune sweeps, honest validation, export.

config      the one settings tree
console     progress bars and tables
cli         the `swing-rl` command
records     its commands for the trial ledger and the registry of bundles
jobs        the same commands as Ray jobs
learning    network, RLModule, training
judging     baselines, sweep, validation, report, export
"""
