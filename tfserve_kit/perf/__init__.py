"""The load harness, in stages: pacing, payloads, sending, samples, stats, report.

Latency counts from the moment a request was due, not from when the harness got round to sending it:
a server that stalls makes later requests late, and their users wait all the same.
"""
