"""The executor: polls the policy, plans whole-share orders, and (only in paper mode) sends them.

config         settings and credentials
broker         the alpaca-py client with timeouts, read without its typed models
policy_client  asks the policy server for a decision
journal        SQLite record of what was meant
past           what the journal tells of the account's past
gates          reasons to hold
plan           target weights and positions to orders
cycle          one idempotent pass
"""
