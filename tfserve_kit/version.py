"""The version of tfkit; the build reads it from here.

Looking it up in the metadata of the installation takes longer than a request.
"""

VERSION = "0.2.0"
