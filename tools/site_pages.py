"""Pages of the documentation site whose text lies outside docs/: MkDocs calls this before it collects its pages."""

import os
import re

from mkdocs.structure.files import File

# Page of the site: file of the checkout.
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "slurm.md": "slurm/README.md"}


def on_files(files, config):
    """Add the pages, with their links as they are from the site's top folder."""
    root = os.path.dirname(os.path.abspath(config["config_file_path"]))
    for page, source in PAGES.items():
        with open(os.path.join(root, source), encoding="utf-8") as stream:
            files.append(File.generated(config, page, content=linked(stream.read(), source)))
    return files


def linked(text, source):
    """Markdown of a file of the checkout with its relative links led to the pages of the site.

    A file that is no page, such as the licence, is named instead of linked.
    """
    pages = {path: page for page, path in PAGES.items()}

    def link(match):
        label, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if path in pages:
            return "[{}]({}{})".format(label, pages[path], anchor)
        if path.startswith("docs/"):
            return "[{}]({}{})".format(label, path[len("docs/") :], anchor)
        return label

    return re.sub(r"\[([^\]]+)\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)", link, text)
