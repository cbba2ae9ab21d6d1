"""A multi-pod preview gateway: dev servers at stable URLs, from any replica."""

from importlib.metadata import version

__version__ = version("preview-gateway")
