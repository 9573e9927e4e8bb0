"""`python -m tfserve_kit` is `tfkit`."""

from tfserve_kit.cli import main

main()
