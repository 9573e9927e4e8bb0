"""How good a served classifier is: datasets -> run -> scores -> report.

The stages after the run are pure: they know what was answered, and not the server.
"""
