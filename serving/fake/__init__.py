"""A local stand-in for Alpaca's REST API, for demos, drills and tests; it binds to loopback only.

Answers have Alpaca's shapes (numbers as text, its error codes), and requests are validated as Alpaca
does. The clock is simulated, so a session long past can be traded.

market   hours, prices, bars and corporate actions, page by page
broker   the account and its orders
answers  both as Alpaca's JSON
faults   failures on demand, on any route
app      the HTTP service
"""
