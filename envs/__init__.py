"""What an action means and what it costs: the market simulator, in NumPy only.

contract     action meaning, observation layout, what a policy is
limits       allocation and limits: positions to target weights
orders       target weights to whole-share orders
costs        what a trade costs
portfolio    the book, and the one pure step that training, backtest and executor share
rewards      named pure reward terms
market       the panel as the simulator reads it
swing        Gymnasium shells: vector environment and scalar environment
backtest     any policy over a panel to a ledger
bundle       read, verify and run a policy bundle without torch
"""
