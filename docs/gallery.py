"""Writes docs/gallery/ from executed notebooks: python docs/gallery.py FOLDER (`make gallery`).

A page a notebook, as Markdown, which the code's host shows as it is and `make docs` turns into
HTML; its pictures beside it, in 128 colours.
"""

import io
import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from PIL import Image

OUT = Path(__file__).parent / "gallery"
COLOURS = 128
IMAGES = {"00 attack", "01 examples", "04 scenes"}
"""Cells, by number and id, that show images of a data set."""
LEFT_OUT = "Images of a data set, which has terms of its own: run the notebook to see them.\n"


def page(path: Path, others: Collection[str] = ()) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as Markdown, and its pictures by name. others: notebooks that have a
    page. ValueError where a cell failed or has not run."""
    notebook = nbformat.read(path, as_version=4)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        if any(output.output_type == "error" for output in cell.outputs):
            raise ValueError(f"{path}: a cell failed: {cell.source[:60]!r}")
        if cell.execution_count is None:
            raise ValueError(f"{path}: a cell has not run: {cell.source[:60]!r}")
        if "injected-parameters" in cell.metadata.get("tags", []):
            # Where its files went is of no interest to others.
            cell.source = re.sub(r"^(figures|folder) = .*\n?", "", cell.source, flags=re.M).strip()
        if f"{path.stem[:2]} {cell.id}" in IMAGES:
            cell.outputs = [nbformat.v4.new_output("stream", text=LEFT_OUT)]
        for output in (o for o in cell.outputs if "text/html" in o.get("data", {})):
            html = re.sub(r"<style.*?</style>\n?", "", output.data["text/html"], flags=re.S)
            output.data["text/html"] = re.sub(r"<span[^>]*></span>", "", html)
        # A bar that is gone leaves an empty output.
        cell.outputs = [o for o in cell.outputs if o.get("text") or any(o.get("data", {}).values())]
    resources = {"unique_key": path.stem, "output_files_dir": path.stem}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources)

    def place(link: re.Match[str]) -> str:
        return f"]({link[1]}.md)" if link[1] in others else f"](../../notebooks/{link[1]}.ipynb)"

    # A page lies a folder deeper than the notebook.
    text = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", place, text.replace("](../", "](../../"))
    return described(text), {name: small(data) for name, data in resources["outputs"].items()}


def described(text: str) -> str:
    """The page with each picture named after the section that it stands in, and blank lines that
    nobody needs left out."""
    heading, code, lines = "", False, []
    for line in text.splitlines():
        code ^= line.startswith("```")
        if not code and (found := re.match(r"#+ (.*)", line)):
            heading = found[1]
        lines.append(line.rstrip().replace("![png]", f"![{heading}]"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def small(png: bytes) -> bytes:
    """The picture in COLOURS colours."""
    out = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return min(out.getvalue(), png, key=len)


def main(folder: Path, out: Path = OUT) -> None:
    """Replaces the pages of the notebooks that are there, and says how large all are."""
    paths = sorted(folder.glob("[0-9]*.ipynb"))
    if not paths:
        raise SystemExit(f"{folder}: no executed notebooks there; `robustlib study` makes them")
    names = {path.stem for path in (*paths, *out.glob("*.md"))}
    made = {path.stem: page(path, names) for path in paths}
    for name, (text, pictures) in made.items():
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
        (out / f"{name}.md").write_text(text, encoding="utf-8")
        for picture, data in pictures.items():
            (out / picture).write_bytes(data)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{len(made)} pages written, {size / 1e6:.1f} MB in all: {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
