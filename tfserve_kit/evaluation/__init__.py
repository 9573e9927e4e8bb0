"""How good a served classifier is, in stages: datasets -> run -> scores -> report, page.

The stages after the run are pure: they know what was answered, and no server.
"""
