"""What the classes of a model are called: label files of every form, and whether they fit.

The form is told by the content, never by the name of the file.
"""

from tfserve_kit.pictures.labels.names import Labels, shown
from tfserve_kit.pictures.labels.reading import from_json, parse, read

__all__ = ["Labels", "from_json", "parse", "read", "shown"]
