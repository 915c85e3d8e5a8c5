"""From trained policies to a verdict.

baselines   policies that anyone can have for nothing
metrics     figures of a ledger, with their uncertainty
backtests   any policy over any span, judged by nobody
ensemble    weights fixed before judging, and how far members disagree
candidate   the sweep's best configurations and their seeds, acting as one
frontier    the same decisions at other costs and account sizes
explain     returns by regime, and what each group of features is worth
search      which configurations a sweep tries
course      the driver's side of a sweep: what is next, what came of it, when to stop
place       a sweep's files, on disk or in a bucket
tune        Ray Tune over configurations and folds
significance  the statistics, as pure functions
criteria    thresholds of the verdict
evidence    what a sweep showed out of sample, every try counted
twins       the candidate trained on features that say nothing
verdict     gates, and what they come to
validate    the sweep's winner before its judge
report      what the judge found, as one page
tear_sheet  quantstats' page beside it
plots       the report's plots
results     a sweep, finished or not, and its page
pages       shell, style, tables and alarms of these pages
export      the bundle
chain       an append-only record, each entry holding the hash of the one before
trial_ledger  every trial of a project, on such a chain
registry    bundles from candidate to champion, on such a chain
"""
