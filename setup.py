"""Builds the package; everything it has to say stands in pyproject.toml."""

from setuptools import setup

setup()
