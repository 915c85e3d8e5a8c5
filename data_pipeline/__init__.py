"""Bars to panels: everything that is seen, causal and versioned.

errors       the tree of errors that people may meet
config       frozen, strict settings; YAML in, errors that name the dotted path
sessions     the exchange calendar and its bells
schema       the one shape of a daily bars table, and its check
intraday     the same within sessions; longer bars made of shorter ones
sources/     where bars come from, behind one interface
alpaca_http  patient reading from Alpaca
quality      findings in bars, by severity
store        immutable Parquet snapshots with a manifest of content hashes
blobs        where a store keeps its bytes: folders, buckets
adjusted     total-return adjusted bars of one symbol
indicators   causal, scale-free functions of bars
features     declared features and ordered sets of them
compute      what is derived from one symbol's bars, block by block
panel        dense arrays over symbols, sessions and features, memory-mapped
assemble     bars to a panel
build        source to snapshot to panel in one call
folds        walk-forward and combinatorial splits with purge
scaling      robust scaler fitted on training sessions
poison       bars with an altered future, and panels built of them
leakage      what moved, how far ahead it reads, and why
audit        poisons the future and names what moved
clearance    whether a panel may be trained on: its audit, once and on record
story        what a snapshot holds, as data and tables
draw         a page with a symbol's bars and features
cli          the `swing-data` command
"""
