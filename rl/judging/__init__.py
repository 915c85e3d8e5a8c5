"""From trained policies to a verdict.

baselines   policies that anyone can have for nothing
metrics     figures of a ledger, with their uncertainty
backtests   any policy over any span, judged by nobody
tune        Ray Tune over configurations and folds
validate    the sweep's winner on the untouched holdout
report      one self-contained HTML page
export      the bundle
"""
