"""What MkDocs does not do by itself for the documentation site; it calls the functions by their names.

Pages whose text lies outside docs/ are added, and references in docstrings (as Sphinx writes them) become links.
"""

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


def on_page_content(html, page, config, files):
    """Link ``:class:`~package.module.Name``` where the page describes it."""

    def reference(match):
        path = match.group(1).lstrip("~")
        shown = "<code>{}</code>".format(path.rpartition(".")[2] if match.group(1).startswith("~") else path)
        return '<a href="#{}">{}</a>'.format(path, shown) if 'id="{}"'.format(path) in html else shown

    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>(~?[\w.]+)</code>", reference, html)


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
