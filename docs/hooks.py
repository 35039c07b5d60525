# SPDX-License-Identifier: Apache-2.0
"""What mkdocs is told about this repository: pages that lie outside docs/, links between them, and how docstrings are
written. mkdocs.yml names this file twice: as a hook, and as an extension of griffe, which reads the package.
"""

import ast
import posixpath
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import griffe
from mkdocs.structure.files import File


ROOT = Path(__file__).parents[1]
# what has its place elsewhere in the repository keeps that place on the site
OUTSIDE = ["README.md", "CHANGELOG.md", "flip_hf/resources/RESTAURANTS.md"]
OUTSIDE += [f"examples/**/*.{suffix}" for suffix in ("md", "png", "py", "json", "ipynb")]
SECTIONS = {"Args": "Parameters", "Attributes": "Attributes", "Raises": "Raises", "Returns": "Returns"}
SECTIONS |= {"Example": "Example"}


def on_files(files: Any, config: Any) -> Any:
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links lead from file to file of the repository; docs/ is the root of the site."""
    uri = page.file.src_uri
    here = posixpath.dirname(uri if page.file.generated_by else f"docs/{uri}")

    def on_the_site(link: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(here, link[1])).removeprefix("docs/")
        return f"]({posixpath.relpath(path, posixpath.dirname(uri) or '.')}"

    code = r"(^```.*?^```$)"
    parts = re.split(code, markdown, flags=re.DOTALL | re.MULTILINE)
    link = re.compile(r"\]\((?!https?:)([^)#\s]+)")
    return "".join(part if number % 2 else link.sub(on_the_site, part) for number, part in enumerate(parts))


class Docstrings(griffe.Extension):
    """Docstrings in the style of transformers become Markdown, and comments beside fields are shown with them."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        self.package = pkg
        for module in _modules(pkg):
            for one in _documented(module):
                if isinstance(one, griffe.Class) and (fields := _fields(one)):
                    text = one.docstring.value if one.docstring else ""
                    one.docstring = griffe.Docstring(f"{text}\n\n**Fields**\n\n{fields}", parent=one)
                if one.docstring:
                    one.docstring.value = self.to_markdown(one.docstring.value, one)

    def to_markdown(self, text: str, owner: griffe.Object) -> str:
        """
        `Args:` and the like become a word in bold with a list below it, and [`Name`] a link, where the site has one.
        """
        parts = re.split(r"^(Args|Attributes|Raises|Returns|Example):\n((?:(?:    .*)?\n)+)", f"{text}\n", flags=re.M)
        written = [parts[0]]
        for word, body, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            body = dedent(body)
            if word in ("Args", "Attributes", "Raises"):
                # an item begins at the left edge; its name, or names, stand before the first colon, types in brackets
                body = re.sub(r"^(\S.*?):(?=\s)", lambda item: f"\n- {_bold(item[1])}:", body, flags=re.M)
            written += [f"**{SECTIONS[word]}**\n\n{body}\n", rest]
        return re.sub(r"\[`([\w.]+)`\]", lambda name: self.link(name[1], owner), "\n".join(written))

    def link(self, name: str, owner: griffe.Object) -> str:
        name = name.removeprefix("flip_hf.")
        head = name.split(".")[0]
        places = [owner, owner.parent, self.package, *_modules(self.package)]
        path = next((f"{place.path}.{name}" for place in places if place and head in place.members), name)
        return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'


def _modules(package: griffe.Module) -> list[griffe.Module]:
    inside = [module for module in package.modules.values() if not module.is_alias]
    return [package, *(one for module in inside for one in _modules(module))]


def _documented(owner: griffe.Object) -> list[griffe.Object]:
    own = [one for one in owner.members.values() if not one.is_alias and not one.is_module]
    return own + [inner for one in own if one.is_class for inner in _documented(one)]


def _fields(owner: griffe.Class) -> str:
    """A list of the annotated fields of a class, with what the comments beside and above them say."""
    if owner.name.startswith("_"):
        return ""
    lines, written = owner.source.splitlines(), []
    for node in ast.parse(dedent(owner.source)).body[0].body:
        if not isinstance(node, ast.AnnAssign) or re.match(r"_|\w+: ClassVar", ast.unparse(node)):
            continue
        above = []
        while lines[node.lineno - 2 - len(above)].strip().startswith("#"):
            above.insert(0, lines[node.lineno - 2 - len(above)].strip().removeprefix("# "))
        beside = lines[node.end_lineno - 1].partition("  # ")[2]
        default, limits, text = node.value, "", beside
        if isinstance(node.value, ast.Call):
            arguments = {word.arg: word.value for word in node.value.keywords}
            match ast.unparse(node.value.func):
                case "within":  # of the configuration
                    allowed, default = node.value.args
                    allowed = owner.module[allowed.id].value if isinstance(allowed, ast.Name) else ast.unparse(allowed)
                    limits = f", in `{str(allowed).strip(chr(39))}`"
                case "_default":  # of the training arguments
                    default, text = node.value.args[0], node.value.args[1].value
                case _:
                    default = arguments.get("default", arguments.get("default_factory"))
        said = "" if default is None else f", default `{ast.unparse(default)}`"
        written += ["", *above, ""] if above else []
        written += [
            f"- **`{node.target.id}`** (`{ast.unparse(node.annotation)}`{limits}{said}){': ' * bool(text)}{text}"
        ]
    return "\n".join(written)


def _bold(names: str) -> str:
    """Words outside brackets: `input_ids, attention_mask (...)`."""
    return re.sub(
        r"\([^()]*(?:\([^()]*\)[^()]*)*\)|(\w+)", lambda word: f"**`{word[1]}`**" if word[1] else word[0], names
    )
