"""Helpers behind the notebooks of the ethalign book.

Three studies, one noun per module: ``config`` says what a run is, ``data`` and ``models``
bring in rows and weights, ``tuning``, ``scoring`` and ``generation`` use them, the metric
modules are pure functions, and ``records`` writes down what happened.
Nothing heavy is imported here; ``import ethalign`` takes milliseconds.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ethalign")
except PackageNotFoundError:  # a checkout on sys.path without an install
    __version__ = "0+unknown"
