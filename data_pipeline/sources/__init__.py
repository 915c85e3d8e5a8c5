"""Where bars come from: each source answers checked bars of one timeframe, and says what they are.

source          the interface, and the choice by name
bundled         history that ships in a package
files           a user's Parquet and CSV
columns         what the columns of those files are called and mean
actions         splits and dividends from an adjusted close
alpaca          history from Alpaca
alpaca_actions  its corporate actions
chunks          finished pieces of a long fetch
worlds          synthetic markets with a known best policy
"""
