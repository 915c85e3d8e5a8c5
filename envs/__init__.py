"""What an action means and what it costs: the market simulator, in NumPy only.

contract     action meaning, observation layout, what a policy is
limits       allocation and limits: positions to target weights
orders       target weights to whole-share orders
costs        what a trade costs
portfolio    the book, and the one pure step that training, backtest and executor share
rewards      named pure reward terms
chance       random numbers that belong to a slot, an episode and a step
market       the panel as the simulator reads it
simulator    many accounts in one set of arrays
swing        Gymnasium shells of it, scalar and vector, for one symbol and for all
worlds       Gymnasium shells of synthetic markets whose best policy is known
optimum      that policy, and what it and lesser ones earn
backtest     any policy over a panel to a ledger
ensemble     several policies as one
bundle       read, verify and run a policy bundle without torch
"""
