"""Pages that carry their style, their script and their pictures with them.

A content security policy with the digests of style and script keeps a page from loading or running anything else, also
if a file name in it was chosen to do so.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
from datetime import UTC, datetime

import jinja2
from markupsafe import Markup


def render(template, scripts, page, **values):
    """(HTML of a template of templates/, the policy that allows what is in it).

    scripts: names of the script files, in order; page: what they find as JSON in the element #page.
    """
    loader = jinja2.PackageLoader("vitrea.jobs", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)
    style = _source(environment, "style.css")
    script = "\n".join(_source(environment, name) for name in scripts)
    policy = (f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
              "base-uri 'none'; form-action 'none'")
    text = environment.get_template(template).render(
        style=Markup(style), script=Markup(script), policy=policy, page=Markup(_script_json(page)),
        version=importlib.metadata.version("vitrea"), written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **values)
    return text, policy


def _script_json(value):
    """JSON for a script element, which only a `<` could end."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _source(environment, name):
    return environment.loader.get_source(environment, name)[0]


def _digest(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
