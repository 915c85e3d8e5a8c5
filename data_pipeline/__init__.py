"""Bars to panels: everything that is seen, causal and versioned.

errors      the tree of errors that people may meet
config      frozen, strict settings; YAML in, errors that name the dotted path
schema      the one shape of a bars table, and its check
sources/    where bars come from, behind one interface
sessions    the exchange calendar
store       immutable Parquet snapshots with a manifest of content hashes
features    declared, causal, scale-free features
panel       dense [session, symbol, feature] arrays, memory-mapped
scaling     robust scaler fitted on training sessions
build       source to snapshot to panel in one call
folds       walk-forward splits with purge
cli         the `swing-data` command
"""
