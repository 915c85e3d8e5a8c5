"""Decide and trade.

contract     the HTTP contract between policy server and executor
policy       the Ray Serve application
executor     the Alpaca executor (loads neither Ray nor torch)
fake         a local stand-in for Alpaca's REST API, for demos, drills and tests
cli          the `swing-live` command
"""
