"""Show in the documentation, by a MkDocs hook, which version of the package it describes."""

from mkdocs.config.defaults import MkDocsConfig

import bptt


def on_config(config: MkDocsConfig, /) -> None:
    """Put the version beside the name, at the head of each page and in its title."""
    config.site_name = f"bptt {bptt.__version__}"
