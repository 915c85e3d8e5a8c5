"""Where bars come from: each source answers checked bars of one timeframe, and says what they are.

source   the interface, and the choice by name
bundled  history that ships in a package
files    a user's Parquet and CSV
"""
